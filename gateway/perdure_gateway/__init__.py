"""The web edge: HTTP and WebSockets for durable objects, as an ASGI application; the gateway process."""

from perdure_gateway.gateway import Gateway

__all__ = ["Gateway"]

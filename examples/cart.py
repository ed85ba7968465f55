"""A shopping cart: one object for each visitor's cart and each product's shelf.  Page: `pages/cart.html`.

Run it with `perdure run examples/cart.py` and open http://127.0.0.1:8080/.

The last piece is sold once, however many buy at the same moment: a shelf hands out one piece at a time.  A
checkout is all or nothing: when a product has run out meanwhile, what was taken for it goes back by durable
sends, which arrive once, whatever crashes.  A cart that nobody touches for a week is emptied by its alarm.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from perdure import Alarm, DurableObject, durable, public, register_exception
from serving import site

PRICES = {"Tea": 490, "Honey": 820, "Bread": 360, "Cheese": 1240, "Lamp": 3900, "Chair": 8900}
"""In cents."""
STOCK = 12
"""Pieces that each shelf starts with."""
PIECES_MAX = 20
FORGOTTEN_AFTER = timedelta(days=7)


class Line(TypedDict):
    """One product in a cart."""

    product: str
    quantity: int
    cents: int


class Contents(TypedDict):
    """What is in a cart."""

    lines: list[Line]
    cents: int
    orders: int


@register_exception
class ShopError(Exception):
    """The shop cannot do that; the cart is as it was."""


@register_exception
class SoldOut(ShopError):
    """Fewer pieces are left than were wanted."""


class Cart(DurableObject):
    """One visitor's cart."""

    quantities: dict[str, int] = durable(default_factory=dict)
    orders: int = durable(0)

    @public
    def contents(self) -> Contents:
        """What is in the cart, and what it costs."""
        lines: list[Line] = [
            {"product": product, "quantity": quantity, "cents": quantity * PRICES[product]}
            for product, quantity in sorted(self.quantities.items())
        ]
        return {"lines": lines, "cents": sum(line["cents"] for line in lines), "orders": self.orders}

    @public
    def put(self, product: str, quantity: int) -> Contents:
        """That many pieces of a product in the cart; 0 takes it out."""
        if product not in PRICES:
            raise ShopError(f"there is no {product!r} in this shop")
        if not 0 <= quantity <= PIECES_MAX:
            raise ShopError(f"a cart holds up to {PIECES_MAX} pieces of a product")
        self.quantities[product] = quantity
        if not quantity:
            del self.quantities[product]
        self.storage.set_alarm(FORGOTTEN_AFTER, name="forgotten")
        return self.contents()

    @public
    async def check_out(self) -> int:
        """Buys what is in the cart and gives the order's number.  Raises `SoldOut`."""
        taken: dict[str, int] = {}
        for product, quantity in sorted(self.quantities.items()):
            if not await self.ctx.get(Shelf, product).take(quantity):
                for other, pieces in taken.items():
                    self.ctx.send(Shelf, other).put_back(pieces)
                await self.storage.sync()  # the error below takes back what comes after this
                raise SoldOut(f"not enough {product} is left")
            taken[product] = quantity
        self.quantities = {}
        self.orders += 1
        return self.orders

    def alarm(self, alarm: Alarm) -> None:
        self.quantities = {}


class Shelf(DurableObject):
    """The pieces of one product."""

    left: int = durable(STOCK)

    @public
    def pieces(self) -> int:
        """How many are left."""
        return self.left

    @public
    def restock(self) -> int:
        """The shelf is full again."""
        self.left = STOCK
        return self.left

    async def take(self, pieces: int) -> bool:
        """Takes them all, or none."""
        if pieces > self.left:
            return False
        self.left -= pieces
        return True

    def put_back(self, pieces: int) -> None:
        """Of an order that did not come about."""
        self.left += pieces


app = site("cart", Cart, Shelf)

// What the example pages need of a browser: calls of @public methods, and a WebSocket that comes back.

/** An error that the server answered with, e.g. `error.type === "Overloaded"`. */
export class CallError extends Error {
  constructor(status, type, message) {
    super(message);
    this.status = status;
    this.type = type;
  }
}

/**
 * Calls a @public method: `await call("Cart", "ann", "add", { item: "tea" })`.
 * Every call carries a key of its own, so that one which has to be repeated takes effect once.
 */
export async function call(namespace, name, method, args = {}) {
  const key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()) + Date.now();
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(`/${namespace}/${encodeURIComponent(name)}/${method}`, {
        method: "POST",
        headers: { "content-type": "application/json", "idempotency-key": key },
        body: JSON.stringify(args),
      });
    } catch (error) {
      if (attempt >= 5) throw error; // the gateway is away
      await pause(200 * 2 ** attempt);
      continue;
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    if (response.status === 503 && attempt < 5) {
      await pause(1000 * Number(response.headers.get("retry-after") || 0.2 * 2 ** attempt));
      continue;
    }
    const { error } = await response.json().catch(() => ({ error: {} }));
    throw new CallError(response.status, error.type || "Error", error.message || response.statusText);
  }
}

/**
 * A WebSocket that connects again by itself. `handlers` may have `open(socket)`, `message(value)` for each
 * JSON message, and `state(text)` with "connecting", "open" or "waiting". `query()` gives what the address
 * carries, e.g. what was seen last; `origin` is another server's. `send(value)` returns whether it went out.
 */
export function connect(path, handlers, query = () => ({}), origin = location.origin) {
  let socket;
  let failures = 0;
  let closed = false;
  const say = (state) => handlers.state && handlers.state(state);

  function open() {
    say("connecting");
    socket = new WebSocket(`${origin.replace(/^http/, "ws")}${path}?${new URLSearchParams(query())}`);
    socket.onopen = () => {
      failures = 0;
      say("open");
      if (handlers.open) handlers.open();
    };
    socket.onmessage = (event) => handlers.message(JSON.parse(event.data));
    socket.onclose = () => {
      if (closed) return;
      say("waiting");
      setTimeout(open, Math.min(10_000, 250 * 2 ** failures++) * (0.5 + Math.random()));
    };
  }
  open();
  return {
    send(value) {
      if (socket.readyState !== WebSocket.OPEN) return false;
      socket.send(JSON.stringify(value));
      return true;
    },
    close() {
      closed = true;
      socket.close(1000);
    },
  };
}

/** Shows the state of a connection in an element with the class "pill". */
export function showState(element) {
  const looks = { open: ["good", "connected"], connecting: ["warn", "connecting"], waiting: ["bad", "reconnecting"] };
  return (state) => {
    const [look, text] = looks[state];
    element.className = `pill ${look}`;
    element.textContent = text;
  };
}

/** `element("li", { class: "mine", text: "hello" }, child...)`: text is never taken for markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** What the address says after `#`, e.g. a room's name; writes a new one there if there is none. */
export function placeFromAddress(invent) {
  if (!location.hash.slice(1)) history.replaceState(null, "", `#${encodeURIComponent(invent())}`);
  return decodeURIComponent(location.hash.slice(1));
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

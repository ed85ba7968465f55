// POST /Counter/<name>/increment adds one; the output gate holds the answer until it is on disk.
export class Counter {
  constructor(state) {
    this.storage = state.storage;
  }
  async fetch() {
    const value = ((await this.storage.get("value")) || 0) + 1;
    await this.storage.put("value", value);
    return new Response(String(value));
  }
}

export default {
  async fetch(request, env) {
    const name = new URL(request.url).pathname.split("/")[2];
    return env.COUNTER.get(env.COUNTER.idFromName(name)).fetch(request);
  },
};

// Comments below an article: <script type="module" src=".../comments.js" data-thread="my-article"></script>
// It draws into a shadow tree behind its own tag, so that the page's style and its own do not meet.
const tag = document.querySelector("script[data-thread]");
const origin = new URL(import.meta.url).origin;
const { connect, element } = await import(`${origin}/pages/perdure.js`);
const thread = tag.dataset.thread;
const host = element("section", { "aria-label": "Comments" });
tag.after(host);
const root = host.attachShadow({ mode: "open" });
const unsent = new Map(); // key -> what was written, until the thread has it
const shown = new Map(); // number -> comment

root.innerHTML = `<link rel="stylesheet" href="${origin}/pages/style.css"><style>
  :host { display: block; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem 0; }
  ol { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: .7rem; }
  li p { margin: .15rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
  li.waiting { opacity: .55; }
  form { display: grid; gap: .6rem; }
  time { color: var(--soft); font-size: .82rem; margin-left: .5rem; }
</style>
<h2>Comments <span class="soft" id="count"></span></h2>
<button class="plain small" id="earlier" hidden>Show earlier ones</button>
<ol id="list" aria-live="polite"></ol>
<p class="notice bad" id="error" role="alert" hidden></p>
<form id="form" class="card">
  <input id="name" placeholder="Your name" aria-label="Your name" maxlength="40" required>
  <textarea id="text" placeholder="What do you think?" aria-label="Your comment" rows="3" maxlength="2000" required></textarea>
  <div class="row"><button>Comment</button><span class="soft small" id="line"></span></div>
</form>`;
const $ = (id) => root.getElementById(id);

function draw(comment, waiting = false) {
  const when = comment.at ? new Date(comment.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "sending";
  return element("li", { class: waiting ? "card waiting" : "card" },
    element("strong", { text: comment.name }), element("time", { text: when }), element("p", { text: comment.text }));
}

function redraw(count) {
  const numbers = [...shown.keys()].sort((a, b) => a - b);
  $("list").replaceChildren(...numbers.map((number) => draw(shown.get(number))), ...[...unsent.values()].map((c) => draw(c, true)));
  if (count != null) $("count").textContent = count || "";
  $("earlier").hidden = !(numbers.length && numbers[0] > 1);
}

const line = connect(`/Thread/${encodeURIComponent(thread)}/socket`, {
  open() {
    line.send({ before: 0 });
    for (const [key, comment] of unsent) line.send({ ...comment, key });
  },
  message(news) {
    for (const comment of news.comments || (news.comment ? [news.comment] : [])) shown.set(comment.number, comment);
    if (news.taken || news.error) unsent.delete(news.taken || news.key);
    $("error").hidden = !news.error;
    $("error").textContent = news.error || "";
    redraw(news.count);
  },
  state: (state) => ($("line").textContent = state === "open" ? "" : "The connection is away; your comment goes out when it is back."),
}, undefined, origin);

$("earlier").onclick = () => line.send({ before: Math.min(...shown.keys()) });
$("form").onsubmit = (event) => {
  event.preventDefault();
  const comment = { name: $("name").value.trim(), text: $("text").value.trim() };
  const key = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  unsent.set(key, comment);
  line.send({ ...comment, key });
  $("text").value = "";
  redraw();
};

// The chat page of `edge serve`. What it shows comes from documents and models, so nothing is ever taken for HTML:
// text goes into text nodes alone.

const at = (id) => document.getElementById(id);
const made = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
};

const ROUTES = {
  local: "answered on this device",
  remote: "answered by the remote",
  queued: "waits for the network",
  abstain: "not answered",
};
const history = [];
let running = null;

// --- the server ---------------------------------------------------------------------------------

function headers() {
  const key = sessionStorage.getItem("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function asked(path, options = {}) {
  for (;;) {
    const reply = await fetch(path, { ...options, headers: headers() });
    if (reply.ok) return reply;
    const error = await reply.json().catch(() => ({}));
    if (reply.status !== 401) throw new Error(error.error?.message ?? `the server said ${reply.status}`);
    await newKey();
  }
}

function newKey() {
  return new Promise((resolve) => {
    at("key").addEventListener("close", () => {
      sessionStorage.setItem("key", at("secret").value);
      at("secret").value = "";
      resolve();
    }, { once: true });
    at("key").showModal();
  });
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

// --- a question ---------------------------------------------------------------------------------

async function ask(question) {
  at("hello")?.remove();
  const article = made("article");
  const answer = made("div", "answer");
  const text = made("p", "text open");
  answer.append(text);
  article.append(made("p", "question", question), answer);
  at("chat").append(article);
  article.scrollIntoView({ block: "end" });
  running = new AbortController();
  busy(true);
  try {
    const body = {
      model: "edge",
      messages: [...history, { role: "user", content: question }],
      stream: true,
      edge: { hold: 0 },
    };
    const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
    const found = await shown(await asked("v1/chat/completions", options), text);
    history.push({ role: "user", content: question }, { role: "assistant", content: found.text });
    answer.append(facts(found), evidence(found), why(found));
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.append(made("p", stopped ? "note" : "note error", stopped ? "stopped" : error.message));
  } finally {
    text.classList.remove("open");
    busy(false);
    article.scrollIntoView({ block: "nearest" });
  }
}

// Write the pieces as they come; what is dropped makes room for what counts. Gives the answer's document.
async function shown(reply, text) {
  let found = null;
  for await (const event of events(reply)) {
    if (event.error) throw new Error(event.error.message);
    if (event.edge?.dropped) {
      text.before(made("p", "note", event.edge.dropped));
      text.textContent = "";
    } else if (event.edge) {
      found = event.edge;
    }
    text.textContent += event.choices?.[0]?.delta?.content ?? "";
  }
  if (!found) throw new Error("the server ended before the answer did");
  text.textContent = found.text;
  return found;
}

function facts(found) {
  const list = made("ul", "facts");
  const sent = Object.entries(found.left_device).map(([name, count]) => `${name}, ${count} characters`);
  const milliseconds = Object.values(found.timings).reduce((sum, each) => sum + (each ?? 0), 0);
  list.append(made("li", found.route, ROUTES[found.route] + (found.model ? ` (${found.model})` : "")));
  if (found.route === "local") {
    const known = found.probability !== null;
    list.append(made("li", "", known ? `right with ${Math.round(100 * found.probability)} %` : "probability unknown"));
  }
  list.append(made("li", "", `${(milliseconds / 1000).toFixed(1)} s`));
  list.append(made("li", "", sent.length ? `sent: ${sent.join("; ")}` : "nothing left this device"));
  return list;
}

function evidence(found) {
  const list = made("ul", "evidence");
  for (const citation of found.citations) {
    const item = made("li");
    item.append(
      made("span", "", `[${citation.number}] ${citation.document}${citation.heading ? ` › ${citation.heading}` : ""}: `),
      made("q", "", citation.quote),
    );
    list.append(item);
  }
  return list;
}

function why(found) {
  const box = made("details", "why");
  box.append(made("summary", "", "Why?"));
  const reasons = made("ul");
  reasons.append(...found.reasons.map((reason) => made("li", "", reason)));
  box.append(reasons);
  const explanation = found.explanation;
  if (explanation?.promise) box.append(made("p", "", explanation.promise));
  if (explanation?.contributions.length) {
    const parts = [{ log_odds: explanation.intercept, what: "to begin with" }, ...explanation.contributions];
    const most = Math.max(...parts.map((part) => Math.abs(part.log_odds)), 0.01);
    const table = made("table");
    for (const part of parts.filter((part) => Math.abs(part.log_odds) >= 0.005)) {
      const row = made("tr");
      const bar = made("td", "bar");
      const length = made("div", part.log_odds < 0 ? "against" : "");
      length.style.width = `${(100 * Math.abs(part.log_odds)) / most}%`;
      bar.append(length);
      const odds = (part.log_odds < 0 ? "−" : "+") + Math.abs(part.log_odds).toFixed(2);
      row.append(made("td", "odds", odds), bar, made("td", "", part.what));
      table.append(row);
    }
    box.append(made("p", "", "What speaks for it and against it, in log-odds:"), table);
  }
  return box;
}

// --- the form -----------------------------------------------------------------------------------

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("anew").hidden = is || history.length === 0;
}

function grow() {
  at("question").style.height = "auto";
  at("question").style.height = `${at("question").scrollHeight + 2}px`;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || !at("stop").hidden) return;
  at("question").value = "";
  grow();
  ask(question);
});
at("question").addEventListener("input", grow);
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("anew").addEventListener("click", () => {
  history.length = 0;
  at("chat").replaceChildren();
  at("anew").hidden = true;
  at("question").focus();
});

try {
  const models = await (await asked("v1/models")).json();
  at("status").textContent = `${models.data[1].id} on ${location.host}`;
} catch (error) {
  at("status").textContent = error.message;
}

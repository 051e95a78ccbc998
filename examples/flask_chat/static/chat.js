// The page: questions, answers and keyboard. ways_in.js reads the answers.

import { showPanel } from "./panel.js";
import { byEventSource, byFetch, cancel } from "./ways_in.js";

const $ = (id) => document.getElementById(id);
const form = $("composer");
const prompt = $("prompt");

// The messages so far, in the upstream's format.
const conversation = [];
// Functions that stop the current answer, and that leave it unfinished for a reload; null without a current answer.
let stop = null;
let leave = null;
// Returns an unguessable key for the next answer, if the server keeps answers.
let nextKey = () => "";
// The key in sessionStorage of the current answer, which a reload continues.
const READING = "reading";

function ask(question) {
  if (stop || !question) return;
  const messages = [...conversation, { role: "user", content: question }];
  read({ messages, way: form.elements.way.value, key: nextKey(), lastEventId: "", text: "" });
}

/** Read an answer, from the position in `reading`. */
async function read(reading) {
  const { messages, key } = reading;
  const question = messages.at(-1).content;
  const controller = new AbortController();
  let isLeft = false;
  const keep = () => key && sessionStorage.setItem(READING, JSON.stringify(reading));
  stop = () => {
    controller.abort();
    if (key) cancel(key);
  };
  leave = () => {
    keep();
    isLeft = true;
    controller.abort();
  };
  keep();
  $("welcome").hidden = true;
  add("question").querySelector(".text").textContent = question;
  const answer = new Answer();
  if (reading.text) answer.write(reading.text);
  setBusy(true);
  try {
    const outcome = await (reading.way === "fetch" ? byFetch : byEventSource)(reading, {
      signal: controller.signal,
      onText: (text, id) => {
        // Text may still arrive after the stop.
        if (controller.signal.aborted) return;
        answer.write(text);
        Object.assign(reading, { text: answer.text, lastEventId: id });
      },
      onRestart: (id) => {
        answer.clear();
        Object.assign(reading, { text: "", lastEventId: id });
      },
      onLost: () => answer.setState("reconnecting", "Connection lost. Reconnecting…"),
      onBack: () => answer.setState(answer.text ? "streaming" : "waiting", ""),
    });
    answer.end(outcome === "done" ? "done" : "stopped");
    // The text of a stopped answer is part of the conversation.
    if (answer.text) {
      conversation.push({ role: "user", content: question }, { role: "assistant", content: answer.text });
    }
  } catch (error) {
    answer.fail(error.message, () => ask(question));
  } finally {
    stop = leave = null;
    if (!isLeft) sessionStorage.removeItem(READING);
    setBusy(false);
  }
}

class Answer {
  constructor() {
    this.element = add("answer");
    // One growing text node: only new text is laid out, and markup stays text.
    this.node = this.element.querySelector(".text").appendChild(document.createTextNode(""));
    this.pieces = 0;
    this.began = performance.now();
  }

  get text() {
    return this.node.data;
  }

  write(text) {
    following(() => {
      this.pieces += 1;
      this.node.appendData(text);
      if (this.element.dataset.state !== "streaming") this.setState("streaming", "");
    });
  }

  /** Start again: the text so far is void. */
  clear() {
    this.node.data = "";
    this.pieces = 0;
    this.setState("waiting", "Starting over…");
  }

  setState(state, note) {
    this.element.dataset.state = state;
    this.element.querySelector(".note").textContent = note;
    announce(note);
  }

  end(state) {
    const how = { done: "Complete", stopped: "Stopped", failed: "Failed" }[state];
    const seconds = ((performance.now() - this.began) / 1000).toFixed(1);
    const pieces = this.pieces === 1 ? "1 piece" : `${this.pieces} pieces`;
    const note = this.pieces ? `${how} · ${pieces} in ${seconds} s` : `${how} before the first word`;
    following(() => this.setState(state, note));
    this.element.removeAttribute("aria-busy");
  }

  fail(message, again) {
    this.end("failed");
    const error = this.element.querySelector(".error");
    const button = error.querySelector("button");
    button.addEventListener("click", () => {
      if (stop) return;
      focusPrompt();
      button.remove();
      again();
    });
    following(() => {
      error.hidden = false;
      error.querySelector("p").textContent = message;
    });
  }
}

function add(template) {
  $("log").append($(template).content.cloneNode(true));
  showEnd();
  return $("log").lastElementChild;
}

function announce(text) {
  $("status").textContent = text;
}

function setBusy(isBusy) {
  const hadFocus = document.activeElement === $("stop");
  $("send").hidden = isBusy;
  $("stop").hidden = !isBusy;
  if (isBusy) announce("Waiting for the answer");
  if (hadFocus) focusPrompt();
}

/** Move the focus to the prompt, but not on a phone, where its keyboard would open. */
function focusPrompt() {
  if (matchMedia("(pointer: fine)").matches) prompt.focus();
}

/** Make a change and keep the end of the page visible, unless the user has scrolled up. */
function following(change) {
  const page = document.scrollingElement;
  const follows = page.scrollHeight - page.scrollTop - page.clientHeight < 48;
  change();
  if (follows) showEnd();
}

function showEnd() {
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = prompt.value.trim();
  if (stop || !question) return;
  prompt.value = "";
  fitPrompt();
  ask(question);
});

prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
  // In East Asian input methods, Enter also completes a character.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && stop) stop();
});
$("stop").addEventListener("click", () => stop?.());
// A browser may keep a page that is left, with all of its streams open.
addEventListener("pagehide", () => leave?.());
// Chromium reports an error to an EventSource before pagehide.
addEventListener("beforeunload", () => leave?.());
addEventListener("pageshow", ({ persisted }) => {
  if (persisted && sessionStorage.getItem(READING)) location.reload();
});

/** Continue the answer that was being read when the page was left. */
function resume(reading) {
  form.elements.way.value = reading.way;
  for (const message of reading.messages.slice(0, -1)) {
    conversation.push(message);
    const shown = add(message.role === "user" ? "question" : "answer");
    shown.querySelector(".text").textContent = message.content;
    shown.dataset.state = "done";
    shown.removeAttribute("aria-busy");
  }
  read(reading);
}

const left = sessionStorage.getItem(READING);
if (left) resume(JSON.parse(left));

showPanel($("panel"), ({ name, place, suggestions, key }) => {
  let count = 0;
  nextKey = () => (key ? `${key}.${(count += 1)}` : "");
  $("about").textContent = `requests go to ${name} ${place}`;
  $("suggestions").replaceChildren(
    ...suggestions.map(({ label, prompt: text, hint }) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
      if (hint) button.append(Object.assign(document.createElement("small"), { textContent: hint }));
      button.addEventListener("click", () => {
        focusPrompt();
        ask(text);
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
});

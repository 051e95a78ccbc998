// The two ways to read an event stream in a browser: fetch and EventSource.
//
// Both functions resolve once the answer is complete or `signal` is aborted, and reject with an Error whose message can
// be shown to the user. They call `onText` with each piece of text and its id.
//
// The server keeps an answer that has a key: it outlives this connection, and can be resumed after `lastEventId`. If the
// process that requests it dies, another process starts the answer again, and `onRestart` is called.

import { fetchEventSource } from "../fetch-event-source/index.js";

const LOST = "The connection was lost before the answer was complete.";
const UNREACHABLE = "The server cannot be reached.";
// A kept answer is requested again at most this many times in a row, after this many milliseconds.
const ATTEMPTS = 5;
const PAUSE = 1000;

/** POST with headers and a body, by @microsoft/fetch-event-source. */
export async function byFetch({ messages, key, lastEventId }, { signal, onLost, onBack, ...on }) {
  let isOpen = false;
  let isDone = false;
  let attempts = 0;
  await fetchEventSource(`chat${key && `?${new URLSearchParams({ key })}`}`, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      ...(lastEventId && { "last-event-id": lastEventId }),
      ...csrfToken(),
    },
    body: JSON.stringify({ messages }),
    signal,
    // By default it closes the connection of a hidden tab, and sends the POST again when the tab is visible.
    openWhenHidden: true,
    async onopen(response) {
      if (!response.ok) throw new Error(await messageOf(response));
      if (isOpen) onBack();
      isOpen = true;
    },
    onmessage({ event, data, id }) {
      // It delivers comments, such as the server's heartbeats, as messages without data.
      if (!data) return;
      attempts = 0;
      isDone = handle(event, data, id, on) || isDone;
    },
    onclose() {
      // fetch reports a lost connection as a TypeError too.
      if (!isDone) throw new TypeError(LOST);
    },
    onerror(error) {
      if (!(error instanceof TypeError)) throw error;
      // Unless this throws, it sends the POST again. That costs nothing if the answer is kept.
      if (!key || !isOpen || (attempts += 1) > ATTEMPTS) throw new Error(isOpen ? LOST : UNREACHABLE);
      onLost();
      return PAUSE;
    },
  });
}

/** GET by EventSource, which reconnects by itself and sends Last-Event-ID. */
export function byEventSource({ messages, key, lastEventId }, { signal, onLost, onBack, ...on }) {
  return new Promise((resolve, reject) => {
    const parameters = { prompt: messages.at(-1).content, ...(key && { key, last_event_id: lastEventId }) };
    const source = new EventSource(`chat?${new URLSearchParams(parameters)}`);
    let isOpen = false;
    let attempts = 0;
    const end = (settle, value) => {
      source.close();
      settle(value);
    };
    source.onopen = () => {
      isOpen = true;
      onBack();
    };
    source.onmessage = (message) => {
      lastEventId = message.lastEventId;
      attempts = 0;
      // If it is not closed, EventSource takes the end for a lost connection and reconnects.
      if (handle("", message.data, lastEventId, on)) end(resolve);
    };
    source.addEventListener("restart", (message) => handle("restart", message.data, message.lastEventId, on));
    // "error" is both an event from the server, which has data, and a lost connection.
    source.onerror = ({ data }) => {
      if (data) end(reject, new Error(messageIn(data)));
      else if (source.readyState === EventSource.CLOSED) end(reject, new Error("The server refused to answer."));
      else if (!isOpen) end(reject, new Error(UNREACHABLE));
      // Without an id a new request would repeat, and cost, the whole answer.
      else if (!key && !lastEventId) end(reject, new Error(LOST));
      else if (key && (attempts += 1) > ATTEMPTS) end(reject, new Error(LOST));
      else onLost();
    };
    signal.addEventListener("abort", () => end(resolve), { once: true });
  });
}

/** End a kept answer. If this request fails, the server aborts the answer when it has had no reader for a while. */
export function cancel(key) {
  fetch(`chat?${new URLSearchParams({ key })}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

/** Handle one event; return whether it ends the answer. */
function handle(event, data, id, { onText, onRestart }) {
  if (data === "[DONE]") return true;
  if (event === "error") throw new Error(messageIn(data));
  if (event === "restart") onRestart(id);
  else onText(JSON.parse(data).text, id);
  return false;
}

/** The message of the event with which the relay reports that the stream failed. */
function messageIn(data) {
  const { message } = JSON.parse(data);
  return `${message[0].toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? "" : "."}`;
}

/** The message of a response with a status other than 200. */
async function messageOf(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status}.`;
}

/** Django's CSRF token, if the server is Django: the cookie's value must be sent as a header. */
function csrfToken() {
  const cookie = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/);
  return cookie ? { "X-CSRFToken": cookie[1] } : {};
}

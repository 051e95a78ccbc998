// Reads a relay of sseqbridge in a browser, by fetch or by EventSource. Copy or serve this file: it needs no other.
// The types, options and outcomes are in relay.d.ts.

const MESSAGES = {
  failed: "The answer was broken off.",
  lost: "The connection was lost before the answer was complete.",
  refused: "The server refused to answer.",
  shutdown: "The server was shut down before the answer was complete.",
  unreachable: "The server cannot be reached.",
};
// The statuses of a server, or a proxy before it, that is being restarted.
const RESTARTING = [502, 503, 504];
// The types of an upstream's heartbeats, which a relay forwards. They are no part of the answer.
const HEARTBEATS = ["ping", "heartbeat", "keepalive", "keep-alive", "keep_alive"];
// How long the end of the response may take after the last event, in milliseconds.
const END = 1000;

/** The reason why there is no whole answer. `message` is a sentence for the user. */
export class RelayError extends Error {
  constructor(kind, { message = MESSAGES[kind], type = null, status = null, retryAfter = null, cause } = {}) {
    super(message, { cause });
    this.name = "RelayError";
    this.kind = kind;
    this.type = type;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Send a request with fetch, and read its answer. See relay.d.ts for the options. */
export async function readByFetch(url, options) {
  const { onEvent, onLost, onBack, isLast, resumes = false, attempts = 5, pause = 1000, ...more } = options;
  const { lastEventId = "", signal, headers, ...init } = more;
  const place = { lastEventId, pause, failures: 0, isOpen: false };
  let restarts = 0;
  for (;;) {
    const sent = new Headers(headers);
    if (!sent.has("Accept")) sent.set("Accept", "text/event-stream");
    if (place.lastEventId) sent.set("Last-Event-ID", encoded(place.lastEventId));
    try {
      // A browser keeps some refusals, such as a 410, by its own rules.
      const request = { cache: "no-store", ...init, headers: sent, signal };
      return await readOnce(url, request, place, { onEvent, onBack, isLast });
    } catch (error) {
      if (signal?.aborted) return "stopped";
      if (resumes && place.lastEventId && error instanceof RelayError && error.status === 410) {
        // The server has lost the events up to this one. Begin again: the events so far are void. Not without end: a
        // server that loses every answer would ask, and pay, for each.
        if ((restarts += 1) > attempts) throw error;
        place.lastEventId = "";
        onEvent({ event: "restart", data: '{"restart":true}', id: "" });
        continue;
      }
      const mayResume = resumes && (place.isOpen || lastEventId) && isTemporary(error);
      if (!mayResume || (place.failures += 1) > attempts) throw error;
      onLost?.(error);
      const spread = 1 + Math.random() / 2;
      await sleep(Math.max(pause, place.pause, error.retryAfter ?? 0) * place.failures * spread, signal);
    }
    if (signal?.aborted) return "stopped";
  }
}

/** Read the response to one request. Returns an outcome, or throws the reason why there is none. */
async function readOnce(url, request, place, { onEvent, onBack, isLast }) {
  const response = await fetch(url, request).catch((cause) => {
    throw new RelayError(place.isOpen ? "lost" : "unreachable", { cause });
  });
  if (response.status === 204) return "ended";
  const isStream = response.headers.get("Content-Type")?.startsWith("text/event-stream");
  if (response.status !== 200 || !isStream) throw await refusal(response);
  if (place.isOpen) onBack?.();
  place.isOpen = true;

  const reader = response.body.getReader();
  try {
    const outcome = await readEvents(reader, place, { onEvent, isLast, signal: request.signal });
    // Not awaited: usually the response ends now, and its connection can be used again.
    end(reader);
    return outcome;
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  }
}

async function readEvents(reader, place, { onEvent, isLast, signal }) {
  const decoder = new TextDecoder();
  const parser = new EventParser(place.lastEventId);
  for (;;) {
    const { done, value, cause } = await reader.read().catch((error) => ({ done: true, cause: error }));
    if (signal?.aborted) return "stopped";
    // Some servers, and proxies, end the response as usual when its source is lost.
    if (done) throw new RelayError("lost", { cause });
    for (const event of parser.push(decoder.decode(value, { stream: true }))) {
      place.failures = 0;
      place.lastEventId = event.id;
      place.pause = event.retry ?? place.pause;
      const outcome = HEARTBEATS.includes(event.event) ? null : handle(event, onEvent, isLast);
      if (signal?.aborted) return "stopped";
      if (outcome) return outcome;
    }
    place.lastEventId = parser.lastEventId;
    place.pause = parser.retry ?? place.pause;
  }
}

/** GET by EventSource, which reconnects by itself with Last-Event-ID. See relay.d.ts for the options. */
export function readByEventSource(url, options) {
  const { onEvent, onLost, onBack, isLast, resumes = false, attempts = 5, signal, events = [], ...init } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return resolve("stopped");
    const source = new EventSource(url, init);
    const place = { lastEventId: "", failures: 0, isOpen: false, hasEnded: false };
    let kind = "lost";
    const settle = (settling, value) => {
      // If it is not closed, EventSource takes the end of the response for a lost connection, and reconnects.
      source.close();
      place.hasEnded = true;
      settling(value);
    };
    const receive = ({ type, data, lastEventId }) => {
      if (place.hasEnded) return;
      place.lastEventId = lastEventId;
      place.failures = 0;
      try {
        const outcome = handle({ event: type === "message" ? "" : type, data, id: lastEventId }, onEvent, isLast);
        if (outcome) settle(resolve, outcome);
      } catch (error) {
        // The server is about to close the connection.
        if (error instanceof RelayError && error.kind === "shutdown") kind = error.kind;
        else settle(reject, error);
      }
    };
    source.onopen = () => {
      if (place.isOpen) onBack?.();
      place.isOpen = true;
      kind = "lost";
    };
    // The browser reports events of other names to listeners for these names alone.
    const names = ["message", "restart", "cancelled", "shutdown", ...events];
    for (const name of names) source.addEventListener(name, receive);
    // "error" is an event from the server, which has data, or a lost connection.
    source.onerror = (event) => {
      if (place.hasEnded) return;
      if (event.data !== undefined) return receive(event);
      if (source.readyState === EventSource.CLOSED) return settle(reject, new RelayError("refused"));
      if (!place.isOpen) return settle(reject, new RelayError("unreachable"));
      const error = new RelayError(kind);
      // Without an id, another request would repeat, and cost, the whole answer.
      if (!resumes && !place.lastEventId) return settle(reject, error);
      if (resumes && (place.failures += 1) > attempts) return settle(reject, error);
      onLost?.(error);
    };
    signal?.addEventListener("abort", () => settle(resolve, "stopped"), { once: true });
  });
}

/** Handle one event. Returns the outcome if it ends the answer; throws a RelayError if it reports a failure. */
function handle(event, onEvent, isLast = ({ data }) => data.trim() === "[DONE]") {
  if (event.event === "cancelled") return "cancelled";
  if (event.event === "shutdown") throw new RelayError("shutdown");
  if (event.event === "error") throw failure(event.data);
  if (isProvidersError(event)) throw failure(event.data);
  if (isLast(event)) return "done";
  onEvent(event);
  return null;
}

/**
 * Whether an event without a name is a provider's error: without `map`, a relay forwards it as it is. Some providers
 * send an empty "error" with each event, and in JSON-RPC it is a member of an ordinary response.
 */
function isProvidersError({ event, data }) {
  if (event || !data.trimStart().startsWith("{") || !data.includes('"error"')) return false;
  let value;
  try {
    value = JSON.parse(data);
  } catch {
    return false;
  }
  const { error } = value;
  if ("jsonrpc" in value) return false;
  if (typeof error === "string") return error.trim() !== "";
  return typeof error === "object" && error !== null && !Array.isArray(error) && Object.values(error).some(Boolean);
}

/** The error for an event that reports a failure: that of a relay, or of a provider. */
function failure(data) {
  const { message, type } = reported(data);
  return new RelayError("failed", { message: message && sentence(message), type });
}

/** The error for a response that is no event stream. */
async function refusal(response) {
  const { status } = response;
  const { message, type } = reported(await response.text().catch(() => ""), { mayBeText: false });
  const byStatus = status === 200 ? undefined : `The server answered with status ${status}.`;
  const seconds = Number(response.headers.get("Retry-After"));
  return new RelayError("refused", {
    message: message ? sentence(message) : byStatus,
    type,
    status,
    retryAfter: seconds > 0 ? seconds * 1000 : null,
  });
}

/** The message and type in `{"error": {"message", "type"}}`, or in a JSON object that has these itself. */
function reported(text, { mayBeText = true } = {}) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    value = mayBeText ? text : null;
  }
  const error = value?.error || value;
  const message = typeof error === "string" ? error : error?.message ?? value?.message;
  return {
    message: typeof message === "string" && message ? message : undefined,
    type: typeof error?.type === "string" ? error.type : null,
  };
}

/** Whether another attempt may succeed. */
function isTemporary(error) {
  if (!(error instanceof RelayError)) return false;
  return ["lost", "shutdown", "unreachable"].includes(error.kind) || RESTARTING.includes(error.status);
}

function sentence(message) {
  return `${message[0].toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? "" : "."}`;
}

/** A header has one byte for each character; browsers send the ID's UTF-8. */
function encoded(id) {
  return String.fromCharCode(...new TextEncoder().encode(id));
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
  });
}

/** Read a response to its end, or close its connection if that takes too long. */
async function end(reader) {
  const timer = setTimeout(() => reader.cancel().catch(() => {}), END);
  try {
    while (!(await reader.read()).done);
  } catch {
    // The connection was lost, or the request aborted.
  }
  clearTimeout(timer);
}

/** Parses an event stream, by https://html.spec.whatwg.org/multipage/server-sent-events.html. */
class EventParser {
  constructor(lastEventId) {
    this.lastEventId = lastEventId;
    // The ID of the block that is not complete yet.
    this.id = lastEventId;
    this.retry = undefined;
    // The pieces of the line that is not complete yet.
    this.rest = [];
    this.endedInCR = false;
    this.clear();
  }

  clear() {
    this.event = "";
    this.data = [];
    this.ownRetry = undefined;
  }

  /** Return the events that this text completes. A line ends with CR, LF or CRLF. */
  push(text) {
    // The LF after a CR at the end of the last text belongs to the same line end.
    if (this.endedInCR && text) {
      this.endedInCR = false;
      if (text.startsWith("\n")) text = text.slice(1);
    }
    if (text) this.endedInCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    // Joined once: an event may have many megabytes, and come in small pieces.
    this.rest.push(lines[0]);
    if (lines.length === 1) return [];
    lines[0] = this.rest.join("");
    this.rest = [lines.pop()];
    return lines.map((line) => this.line(line)).filter(Boolean);
  }

  line(line) {
    if (line === "") {
      const { event, id, ownRetry } = this;
      this.lastEventId = id;
      const complete = this.data.length ? { event, data: this.data.join("\n"), id, retry: ownRetry } : null;
      this.clear();
      return complete;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value === "message" ? "" : value;
    else if (field === "id" && !value.includes("\0")) this.id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.retry = this.ownRetry = Number(value);
    return null;
  }
}

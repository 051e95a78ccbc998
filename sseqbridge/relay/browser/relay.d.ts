/** The TypeScript declaration of relay.js. */

/** One event. `event` is "" for an event without a name. `id` is the last event ID; `lastEventId` resumes after it. */
export interface RelayEvent {
  readonly event: string;
  readonly data: string;
  readonly id: string;
}

/**
 * How an answer ended.
 *
 * "done": whole.
 * "cancelled": by the application, for all its readers.
 * "ended": a kept answer has no event after `lastEventId`. It was read whole, or cancelled.
 * "stopped": by `signal`.
 */
export type Outcome = "done" | "cancelled" | "ended" | "stopped";

/**
 * Why there is no whole answer.
 *
 * "failed": the relay reported an error of the upstream, or of the application.
 * "refused": the server answered with another status than 200, or with no event stream.
 * "lost": the connection was lost, or ended before the last event.
 * "shutdown": the server announced that it ends.
 * "unreachable": there was no answer at all.
 */
export type Failure = "failed" | "refused" | "lost" | "shutdown" | "unreachable";

export declare class RelayError extends Error {
  readonly name: "RelayError";
  readonly kind: Failure;
  /** The type of the error that was reported, such as "TruncatedStreamError"; null if none was. */
  readonly type: string | null;
  /** The status of a refusal; null for other failures, and with EventSource, which hides it. */
  readonly status: number | null;
  /** Retry-After of a refusal, in milliseconds; null without it. */
  readonly retryAfter: number | null;
}

export interface ReadOptions {
  /**
   * Called with each event that is neither the last one, an error, nor a heartbeat ("ping", "heartbeat", "keepalive",
   * "keep-alive", "keep_alive"). What it throws ends the reading.
   */
  onEvent(event: RelayEvent): void;
  /** Called when the connection was lost, and another attempt follows. */
  onLost?(reason: RelayError): void;
  /** Called when another attempt got its answer. */
  onBack?(): void;
  /** Whether an event is the last one; it is no part of the answer. By default: that with the data `[DONE]`. */
  isLast?(event: RelayEvent): boolean;
  /** Aborts the request, and with that the upstream's. */
  signal?: AbortSignal;
  /**
   * Whether the request may be sent again, with Last-Event-ID, after a lost connection. By default false.
   *
   * A POST that is sent again asks, and pays, again, unless the server keeps the answer under a key that the page has
   * chosen (sseqbridge.resume: `log.open(key, start, last_event_id=...)`). Pass true only then, and for a GET that
   * reads.
   *
   * If the server answers 410, it has lost the events up to Last-Event-ID, and readByFetch begins again without an ID.
   * `onEvent` first gets an event "restart", as a log sends it: the events so far are void. After `attempts` such
   * restarts the next 410 is a refusal.
   */
  resumes?: boolean;
  /** How many attempts in a row may fail without an event. By default 5. */
  attempts?: number;
}

export interface FetchOptions extends ReadOptions, Omit<RequestInit, "signal"> {
  /** The shortest pause before these attempts, in milliseconds; `retry:` makes it longer. By default 1000. */
  pause?: number;
  /** The ID after which an earlier reading goes on, for example before the page was reloaded. */
  lastEventId?: string;
}

export interface EventSourceOptions extends ReadOptions, EventSourceInit {
  /** Further names of events for `onEvent`; events without a name, and "restart", need not be listed. */
  events?: readonly string[];
}

/** Send a request with fetch, and read its answer. Rejects with a RelayError, or with what `onEvent` throws. */
export declare function readByFetch(url: string | URL, options: FetchOptions): Promise<Outcome>;

/** GET with EventSource. It sends Last-Event-ID by itself when it reconnects, but cannot send a first one. */
export declare function readByEventSource(url: string | URL, options: EventSourceOptions): Promise<Outcome>;

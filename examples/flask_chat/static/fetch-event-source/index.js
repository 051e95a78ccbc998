// Replaces @microsoft/fetch-event-source, so that the page runs without npm; it has the part of the interface that the
// page uses. After an error it calls `onerror`. It then sends the request again, with the last event ID, after the
// number of milliseconds that `onerror` returns, or rejects with the exception that `onerror` throws.

export const EventStreamContentType = "text/event-stream";

/** Fetch `url` and call `onmessage` with each event; resolves at the end of the stream, or when it is aborted. */
export async function fetchEventSource(url, options) {
  const { onopen, onmessage, onclose, onerror, openWhenHidden, signal, headers, ...rest } = options;
  const sent = { accept: EventStreamContentType, ...headers };
  while (!signal?.aborted) {
    try {
      const response = await fetch(url, { ...rest, signal, headers: sent });
      await onopen?.(response);
      for await (const message of messagesOf(linesOf(response.body))) {
        if (message.id) sent["last-event-id"] = message.id;
        onmessage?.(message);
      }
      onclose?.();
      return;
    } catch (error) {
      if (signal?.aborted) return;
      const pause = onerror?.(error) ?? 1000;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

/** Yield the lines of a body, each as soon as it is complete. A line ends with CR, LF or CRLF. */
async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let endedInCR = false;
  try {
    for (let read; !(read = await reader.read()).done; ) {
      // The LF after a CR at the end of the last read belongs to the same line end.
      const text = endedInCR && read.value.startsWith("\n") ? read.value.slice(1) : read.value;
      endedInCR = read.value.endsWith("\r");
      const lines = (rest + text).split(/\r\n|\r|\n/);
      rest = lines.pop();
      yield* lines;
    }
  } finally {
    // Closes the connection if the consumer leaves early.
    reader.cancel().catch(() => {});
  }
}

/** Yield the messages in the lines, by https://html.spec.whatwg.org/multipage/server-sent-events.html. */
async function* messagesOf(lines) {
  let event = "";
  let id = "";
  let data = [];
  for await (const line of lines) {
    if (line === "") {
      if (data.length) yield { event, id, data: data.join("\n") };
      event = "";
      data = [];
      continue;
    }
    const [, field, value] = line.match(/^([^:]*)(?:: ?(.*))?$/su);
    if (field === "data") data.push(value ?? "");
    else if (field === "event") event = value ?? "";
    else if (field === "id" && !value?.includes("\0")) id = value ?? "";
  }
}

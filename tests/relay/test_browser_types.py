"""relay.d.ts, checked by TypeScript's compiler, and against the module that it declares."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.browser

BROWSER = ROOT / "sseqbridge/relay/browser"

# A program of a user; each comment names the error that the compiler must report in its line.
PROGRAM = """\
import { readByEventSource, readByFetch, RelayError, type Outcome, type RelayEvent } from "./relay.js";

const controller = new AbortController();
const show = (event: RelayEvent): void => console.log(event.event, event.data, event.id);

export async function read(): Promise<Outcome | undefined> {
  try {
    await readByEventSource("/chat", { onEvent: show, events: ["note"], resumes: true, withCredentials: true });
    await readByEventSource(new URL("http://x/"), { onEvent: show, onLost: ({ kind }) => console.log(kind) });
    const outcome = await readByFetch("/chat", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "{}",
      credentials: "include",
      signal: controller.signal,
      lastEventId: "1-1",
      resumes: true,
      attempts: 3,
      pause: 100,
      isLast: ({ event }) => event === "message_stop",
      onBack: () => {},
      onEvent({ data }) {
        console.log(data);
      },
    });
    const ended: "done" | "cancelled" | "ended" | "stopped" = outcome;
    return ended;
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    const seconds: number = (error.retryAfter ?? 0) / 1000;
    const status: number | null = error.status;
    if (error.kind === "refused") console.log(error.message, error.type, status, seconds);
    return undefined;
  }
}
"""
WRONG = """\
import { readByEventSource, readByFetch, RelayError } from "./relay.js";
export const without = readByFetch("/chat", {}); // TS2345
export const misspelt = readByFetch("/chat", { onEvent() {}, timeout: 1 }); // TS2353
export const posted = readByEventSource("/chat", { onEvent() {}, method: "POST" }); // TS2353
export const outcome: Promise<"lost"> = readByFetch("/chat", { onEvent() {} }); // TS2322
export const kind = (error: RelayError): boolean => error.kind === "unknown"; // TS2367
export const change = (error: RelayError): void => { error.status = 1; }; // TS2540
"""


def compile_program(directory: Path, text: str, module: str = "bundler") -> list[tuple[int, str]]:
    """Return the line and the code of each error that the compiler reports for a program beside the declaration."""
    compiler = Path(sys.prefix) / "npm" / "node_modules" / ".bin" / "tsc"
    if not compiler.exists():
        pytest.skip(f"npm install --prefix {compiler.parents[2]} typescript was not run")
    for name in ("relay.js", "relay.d.ts"):
        (directory / name).write_text((BROWSER / name).read_text("utf-8"), "utf-8")
    (directory / "page.ts").write_text(text, "utf-8")
    (directory / "package.json").write_text('{"type": "module"}')
    target = "nodenext" if module == "nodenext" else "es2022"
    # TypeScript's own declarations are not checked: two thirds of the time.
    checks = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--skipDefaultLibCheck"]
    options = ["--target", "es2022", "--lib", "dom,es2022", "--module", target, "--moduleResolution", module]
    command = [str(compiler), *checks, *options, "page.ts"]
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=250, check=False)
    errors = re.findall(r"^page\.ts\((\d+),\d+\): error (TS\d+)", ran.stdout, re.M)
    assert ran.returncode == 0 or errors, ran.stdout + ran.stderr
    return [(int(line), code) for line, code in errors]


@pytest.mark.parametrize("module", ["bundler", "nodenext"])
def test_declaration_accepts_what_users_write(tmp_path: Path, module: str) -> None:
    assert compile_program(tmp_path, PROGRAM, module) == []


def test_declaration_refuses_mistakes(tmp_path: Path) -> None:
    lines = enumerate(WRONG.splitlines(), 1)
    expected = [(number, code) for number, line in lines for code in re.findall(r"TS\d+", line)]
    assert len(expected) == 6
    assert compile_program(tmp_path, WRONG) == expected


def test_declaration_has_what_the_module_exports() -> None:
    module, declaration = ((BROWSER / name).read_text("utf-8") for name in ("relay.js", "relay.d.ts"))
    exported = set(re.findall(r"^export (?:async )?(?:function|class) (\w+)", module, re.M))
    assert set(re.findall(r"^export declare (?:function|class) (\w+)", declaration, re.M)) == exported
    assert exported == {"RelayError", "readByEventSource", "readByFetch"}
    # Each option that a function of the module takes is declared.
    taken = {
        name.partition("=")[0].strip()
        for names in re.findall(r"const \{ ([^}]+) \} = (?:options|more);", module)
        for name in names.split(",")
        if "..." not in name
    }
    declared = set(re.findall(r"^  (\w+)\??[:(]", declaration, re.M))
    assert taken - {"signal", "headers"} <= declared
    [constructor] = re.findall(r"^export class RelayError .*?^}", module, re.M | re.S)
    fields = set(re.findall(r"this\.(\w+) = \1;", constructor))
    assert fields == {"kind", "type", "status", "retryAfter"}
    assert fields <= set(re.findall(r"^  readonly (\w+):", declaration, re.M))
    kinds = set(re.findall(r"^  (\w+): \"", module, re.M))
    union = re.search(r"^export type Failure = (.*);", declaration, re.M)
    assert union is not None
    assert set(re.findall(r'"(\w+)"', union[1])) == kinds

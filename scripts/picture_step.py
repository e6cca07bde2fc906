"""Turns the text of a terminal, with the codes of its colours, into a page that looks like it."""

import html
import re
import sys

COLOURS = ["#2e3436", "#e06c6c", "#7cc36e", "#e5c07b", "#6ea8e0", "#c586c0", "#56b6c2", "#d3d7cf"]
BACK, FORE = "#1b1d21", "#d3d7cf"


def style(codes, state):
    codes = iter(codes)
    for code in codes:
        if code == 0:
            state.clear()
        elif code == 38:
            # 38;5;n: one of 256, of which the stepper uses the first eight.
            next(codes, 5)
            state["colour"] = COLOURS[next(codes, 7) % len(COLOURS)]
        elif code == 1:
            state["bold"] = True
        elif code == 7:
            state["turned"] = True
        elif code == 22:
            state.pop("bold", None)
        elif code == 27:
            state.pop("turned", None)
        elif 30 <= code <= 37:
            state["colour"] = COLOURS[code - 30]
        elif code == 39:
            state.pop("colour", None)
    colour, back = state.get("colour", FORE), None
    if state.get("turned"):
        colour, back = BACK, colour
    css = f"color:{colour}"
    css += f";background:{back}" if back else ""
    css += ";font-weight:bold" if state.get("bold") else ""
    return css


def main():
    out, state = [], {}
    css = style([], state)
    for part in re.split(r"(\x1b\[[0-9;]*m|\x0e|\x0f)", sys.stdin.read().rstrip("\n")):
        found = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if found:
            css = style([int(code or 0) for code in found[1].split(";")], state)
        elif part and part not in "\x0e\x0f":
            out.append(f'<span style="{css}">{html.escape(part)}</span>')
    print('<!doctype html><meta charset="utf-8"><style>')
    print(f"body{{margin:0;background:{BACK}}}")
    print("pre{margin:16px;font:14px/18px 'DejaVu Sans Mono','Liberation Mono',monospace}</style>")
    print(f"<pre>{''.join(out)}</pre>")


main()

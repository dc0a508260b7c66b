#!/usr/bin/env python3
"""Chats with tools as Jinja2 renders them with transformers' settings, for tests/test_row_formats.cpp.

    python tests/golden/make_tools_golden.py

Made with jinja2 3.1.6, Python 3.11. Writes tests/golden/text/tools.json: rows of OpenAI's kind, and of each template in
tests/golden/text/templates/ that reads tools the text of each row, null where Jinja2 raises an error.
"""
import json
import os

import jinja2

from make_template_golden import HERE, TOKENS, environment

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city, \"now\"",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "enum": [1, 7]}}, "required": ["city"]}}}
TIME = {"type": "function", "function": {"name": "get_time", "description": "Zeit überall", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments, number):
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(content, number):
    return {"role": "tool", "tool_call_id": f"call{number:05}", "content": content}


ASK = {"role": "user", "content": "Weather in Oslo?"}
COLD = {"role": "assistant", "content": "It is cold."}
ROWS = [
    {"messages": [ASK, COLD], "tools": [WEATHER]},
    {"messages": [{"role": "system", "content": "Be brief."}, ASK, COLD], "tools": [WEATHER, TIME]},
    {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [call("get_weather", {"city": "Oslo", "days": 1}, 1)]},
                  answer("{\"temp\": 4}", 1), COLD], "tools": [WEATHER]},
    {"messages": [ASK, {"role": "assistant", "content": "I'll look.", "tool_calls": [call("get_weather", {"city": "Å"}, 1), call("get_time", {}, 2)]},
                  answer("4", 1), answer("noon", 2), COLD, {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "Welcome."}],
     "tools": [TIME, WEATHER]},
]


def rendered(template, row):
    try:
        return template.render(messages=row["messages"], tools=row["tools"], documents=None, add_generation_prompt=True, **TOKENS)
    except (jinja2.exceptions.TemplateError, TypeError):
        return None


def main():
    env = environment()
    texts = {}
    for name in sorted(os.listdir(os.path.join(HERE, "templates"))):
        with open(os.path.join(HERE, "templates", name), encoding="utf-8") as f:
            source = f.read()
        if "tool_calls" in source:
            texts[name.removesuffix(".jinja")] = [rendered(env.from_string(source), row) for row in ROWS]
    with open(os.path.join(HERE, "tools.json"), "w", encoding="utf-8") as f:
        json.dump({"rows": ROWS, "rendered": texts}, f, indent=1, ensure_ascii=False)
        f.write("\n")


if __name__ == "__main__":
    main()

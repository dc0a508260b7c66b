#!/usr/bin/env python3
"""Makes a static site of the documents, with pandoc: site.py FOLDER.

Each page of Markdown becomes a page of HTML in the same place (README.md: index.html), and each file or folder that one links a
page that shows it, with an anchor for each line. All links of the result are then followed; one that leads nowhere fails.
The pages need no network and no script. Exits with 77 where there is no pandoc.
"""
import html
import html.parser
import pathlib
import posixpath
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/README.md", "docs/one-training-step.md", "docs/matrix-product.md", "docs/attention.md", "docs/faq.md",
         "docs/how-to-add-an-op.md", "docs/methods.md", "docs/families.md", "docs/defaults.md", "docs/several-gpus.md", "docs/performance.md",
         "docs/decisions.md", "CONTRIBUTING.md"]
SHORT = {"README.md": "Lorikeet", "docs/README.md": "A path through the code"}

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--box:#f6f8fa;--link:#0969da;
 --kw:#8250df;--st:#0a3069;--co:#59636e;--dv:#953800}
@media (prefers-color-scheme:dark){:root{--page:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--box:#151b23;--link:#4493f8;
 --kw:#d2a8ff;--st:#a5d6ff;--co:#9198a1;--dv:#ffa657}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,'DejaVu Sans',sans-serif}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
.frame{display:grid;grid-template-columns:15rem minmax(0,54rem);gap:2.5rem;max-width:74rem;margin:0 auto;padding:1.5rem}
nav{font-size:.92rem}.menu{display:none;margin:1rem 1rem 0}nav ul{list-style:none;margin:0;padding:0}nav li{margin:.35rem 0}
nav .here{color:var(--ink);font-weight:600}
h1,h2,h3{line-height:1.25;margin:1.8em 0 .6em}h1{margin-top:0}h2{border-bottom:1px solid var(--line);padding-bottom:.25em}
img{max-width:100%;height:auto}
pre{background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.8rem;overflow-x:auto;
 font-size:.84rem;line-height:1.45}
code{font-family:ui-monospace,'DejaVu Sans Mono',monospace}
td code,th code{overflow-wrap:normal!important}
:not(pre)>code{background:var(--box);border-radius:4px;padding:.1em .3em;font-size:.87em;overflow-wrap:anywhere}
table{display:block;overflow-x:auto;border-collapse:collapse;font-size:.92rem}
th,td{border:1px solid var(--line);padding:.35rem .6rem;text-align:left;vertical-align:top}
thead:not(:has(th:not(:empty))){display:none}
details{border-left:3px solid var(--line);padding-left:1rem;margin:1rem 0}summary{cursor:pointer;color:var(--link)}
.file a{color:var(--soft);user-select:none;display:inline-block;width:3.2em;text-align:right;margin-right:1.2em}
.file span:target{background:color-mix(in srgb,var(--dv) 25%,transparent)}
.kw,.cf,.dt,.pp{color:var(--kw)}.st,.ch,.sc{color:var(--st)}.co{color:var(--co)}.dv,.fl,.bn{color:var(--dv)}
pre a:empty{display:none}
@media (max-width:60rem){.frame{display:block;padding:1rem}.side{display:none}.menu{display:block}body{font-size:15px}
 p:has(>img){overflow-x:auto}p>img{max-width:none;width:44rem}}
"""


def place(path):
    """Where the site has the page of a file or folder of the repository."""
    if path.endswith(".md"):
        folder, name = posixpath.split(path)
        return posixpath.join(folder, "index.html" if name == "README.md" else name[:-3] + ".html")
    return path if path.endswith(".svg") else path + ".html"


def link(from_page, path):
    return posixpath.relpath(place(path), posixpath.dirname(place(from_page)) or ".")


def title_of(path):
    first = re.search(r"^# (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.M) if path.endswith(".md") else None
    return first.group(1).replace("`", "") if first else path


def page(path, body):
    """A whole page. The list of pages stands beside wide text and folded above narrow text; the style hides one of the two."""
    items = "".join(f'<li><a class="{"here" if p == path else "to"}" href="{link(path, p)}">'
                    f'{html.escape(SHORT.get(p) or title_of(p))}</a></li>' for p in PAGES)
    style = posixpath.relpath("style.css", posixpath.dirname(place(path)) or ".")
    name = SHORT.get(path) or title_of(path)
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{html.escape(name)}{"" if name == "Lorikeet" else " - Lorikeet"}</title>'
            f'<link rel="stylesheet" href="{style}"></head>'
            f'<body><details class="menu"><summary>Pages</summary><nav><ul>{items}</ul></nav></details>'
            f'<div class="frame"><nav class="side"><ul>{items}</ul></nav><main>{body}</main></div></body></html>\n')


def listing(path):
    """The page of a source file, line by line, or of a folder."""
    title = f"<h1><code>{html.escape(path)}</code></h1>"
    if (ROOT / path).is_dir():
        names = [p.name for p in sorted((ROOT / path).iterdir()) if not p.name.startswith((".", "__"))]
        return title + "<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in names) + "</ul>"
    lines = []
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        code = html.escape(line)
        comment = re.match(r"(\s*)((?://|#(?!include|pragma|if|el|end|define|undef)).*)$", code)
        if comment:
            code = f'{comment.group(1)}<span class="co">{comment.group(2)}</span>'
        lines.append(f'<span id="L{number}"><a href="#L{number}">{number}</a>{code}</span>')
    return title + '<pre class="file"><code>' + "\n".join(lines) + "</code></pre>"


class Links(html.parser.HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name"):
                self.ids.add(value)


def render(path, wanted):
    """A document as HTML whose links lead to pages of the site; what it links is added to `wanted`."""
    body = subprocess.run(["pandoc", "-f", "gfm", "-t", "html5", "--wrap=none"], input=(ROOT / path).read_text(encoding="utf-8"),
                          stdout=subprocess.PIPE, text=True, check=True).stdout

    def lead(match):
        attribute, target = match.groups()
        if re.match(r"[a-z]+:|#|//", target):
            return match.group(0)
        file, _, part = target.partition("#")
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        wanted.add(to)
        part = re.sub(r"^(L\d+)-L\d+$", r"\1", part)
        return f'{attribute}="{link(path, to)}{"#" + part if part else ""}"'

    return re.sub(r'\b(href|src)="([^"]+)"', lead, body)


def broken(folder):
    """Links of the site's pages that lead nowhere."""
    pages = {p.relative_to(folder).as_posix(): Links(p.read_text(encoding="utf-8")) for p in folder.rglob("*.html")}
    wrong = []
    for name, found in pages.items():
        for target in found.links:
            if re.match(r"[a-z]+:", target):
                continue
            file, _, part = target.partition("#")
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            if not (folder / to).is_file():
                wrong.append(f"{name}: {target}: no such page")
            elif part and to in pages and part not in pages[to].ids:
                wrong.append(f"{name}: {target}: no such place on the page")
    return wrong


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    if not shutil.which("pandoc"):
        print("there is no pandoc")
        return 77
    folder = pathlib.Path(sys.argv[1])
    todo, made = set(PAGES), {}
    while todo:
        path = todo.pop()
        source = ROOT / path
        if not source.exists():
            print(f"{path} is linked and does not exist")
            return 1
        wanted = set()
        if path.endswith(".svg"):
            made[place(path)] = source.read_text(encoding="utf-8")
        else:
            made[place(path)] = page(path, render(path, wanted) if path.endswith(".md") else listing(path))
        todo |= {w for w in wanted if place(w) not in made}
    for name, text in {**made, "style.css": STYLE}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    wrong = broken(folder)
    fine = f"{len(made)} pages in {folder}; all links lead somewhere. Begin at {folder / 'index.html'}"
    print("\n".join(wrong) if wrong else fine)
    print(f"lorikeet-tests: {int(not wrong)} passed, {int(bool(wrong))} failed, 0 skipped")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""How the page looks and how it keeps itself up to date; what browsers may load is these two texts and nothing else."""

import base64
import hashlib

STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5b6775;--line:#e2e6ec;
--accent:#2563c9;--good:#17713c;--good-ground:#e2f4e8;--bad:#ad1f23;--bad-ground:#fde9e8;--warn:#8a5200;--warn-ground:#fdf1d8}
@media(prefers-color-scheme:dark){:root{--ground:#11161d;--card:#1a212b;--ink:#e4e9f0;--soft:#9aa7b6;--line:#2c3643;
--accent:#6ea8ff;--good:#7bd79d;--good-ground:#173424;--bad:#ff9a94;--bad-ground:#42201f;--warn:#f3c26b;--warn-ground:#3c2d12}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.25rem}
h1{font-size:1.35rem;margin:0;display:flex;flex-wrap:wrap;gap:.3rem .75rem;align-items:center}
h2{font-size:1rem;margin:0 0 .6rem}
.about{color:var(--soft);margin:.3rem 0 0;overflow-wrap:anywhere}
.about span+span::before{content:"·";margin:0 .5rem}
.pill{display:inline-block;border-radius:1rem;padding:.05rem .6rem;font-size:.85rem;font-weight:600;white-space:nowrap}
.good{color:var(--good);background:var(--good-ground)}
.bad{color:var(--bad);background:var(--bad-ground)}
.warn{color:var(--warn);background:var(--warn-ground)}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:1rem 0;min-width:0}
.alarm{border-color:var(--bad);border-left-width:.35rem}
.alarm li{margin:.35rem 0;overflow-wrap:anywhere}
.alarm ul{margin:0;padding-left:1.1rem}
.tiles{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.75rem;margin:1rem 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.65rem .9rem;min-width:0}
.tile dt{color:var(--soft);font-size:.85rem}
.tile dd{margin:0;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tile small{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:1rem;margin:1rem 0}
.pair .card{margin:0}
.state{margin:0 0 .6rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500;font-size:.85rem;text-align:left}
th,td{padding:.35rem 1rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
th:last-child,td:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap}
td small{color:var(--soft);display:block}
.when{white-space:nowrap}
td{overflow-wrap:break-word}
#nodes table,#gate table,#errors table{min-width:44rem}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.none{color:var(--soft);margin:0}
.chart{display:block;width:100%;height:auto}
.chart .rule{stroke:var(--line)}
.chart .axis{fill:var(--soft);font-size:11px}
.chart .line{fill:none;stroke:var(--accent);stroke-width:1.6;stroke-linejoin:round}
.chart .area{fill:var(--accent);fill-opacity:.16}
footer{color:var(--soft);padding-bottom:2rem;font-size:.9rem}
a{color:var(--accent)}
@media(max-width:44rem){.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}.tile dd{font-size:1.05rem}
th,td{padding-right:.6rem}.chart .axis{font-size:16px}}
#silent{display:none;position:sticky;top:0;z-index:1;background:var(--bad);color:var(--card);padding:.5rem 1rem;
text-align:center;font-weight:600}
.silent #silent{display:block}
.silent main{opacity:.55}
"""

SCRIPT = """
(() => {
  let heard = Date.now();
  async function turn() {
    try {
      const answer = await fetch(location.pathname, {headers: {Accept: "text/html"}, cache: "no-store"});
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!answer.ok || !fresh.querySelector("main")) throw new Error(answer.status);
      if (getSelection().isCollapsed) {
        for (const part of ["header", "main"])
          document.querySelector(part).replaceWith(document.adoptNode(fresh.querySelector(part)));
        document.title = fresh.title;
      }
      heard = Date.now();
      document.body.classList.remove("silent");
    } catch (error) {
      const seconds = Math.round((Date.now() - heard) / 1000);
      const silent = document.getElementById("silent");
      silent.textContent = `The daemon has not answered for ${seconds} s: what follows is old.`;
      document.body.classList.add("silent");
      document.title = "no answer \u2013 leasecache";
    }
    setTimeout(turn, document.hidden ? 15000 : 2000);
  }
  setTimeout(turn, 2000);
})();
"""


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src {_digest(STYLE)}",
        f"script-src {_digest(SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

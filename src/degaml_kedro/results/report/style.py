"""How a page looks, and the few lines that draw its figures."""

from __future__ import annotations

# figures stay on white: their colors are chosen for it
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #5c5c5c; --line: #c9c9c9;
  --shade: #f3f5f7; --link: #00538a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181a; --faint: #a8a8a8; --line: #45494d; --shade: #202428; --link: #7cc4f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.45rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.15rem; margin: 1.8rem 0 .5rem; }
header p { color: var(--faint); margin: 0; }
p, ul { max-width: 48rem; }
a { color: var(--link); }
code { font: .92em ui-monospace, "DejaVu Sans Mono", Consolas, monospace; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .8rem 1rem; background: var(--shade); border: 1px solid var(--line); }
pre code { overflow-wrap: normal; }
nav { margin: 1.5rem 0; padding: .8rem 1.2rem; background: var(--shade); }
nav h2 { font-size: 1rem; margin: 0 0 .3rem; padding: 0; border: 0; }
nav ol { margin: 0; padding-left: 1.4rem; }
nav > ol { columns: 2; column-gap: 2rem; }
nav li { break-inside: avoid; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; padding: .5rem; background: var(--paper); }
.wide { overflow-x: auto; }
.table { margin: 1.4rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; font-weight: 600; padding: 0 0 .4rem; }
th, td { padding: .25rem .55rem .25rem 0; text-align: left; vertical-align: top; }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
tbody + tbody { border-top: 1px solid var(--ink); }
table { border-bottom: 2px solid var(--ink); }
th.group { font-style: italic; color: var(--faint); }
th.number { text-align: right; }
td.number { text-align: right; white-space: nowrap; }
thead th { max-width: 8.5rem; }
abbr { text-decoration: none; }
.notes { color: var(--faint); font-size: .85rem; }
.notes p { margin: .25rem 0; }
figure { margin: 1.6rem 0; }
.plot { background: #ffffff; color: #1b1b1b; }
figcaption { color: var(--faint); font-size: .9rem; max-width: 48rem; margin-top: .3rem; }
@page { size: A4; margin: 14mm; }
@media print {
  :root { --ink: #000000; --paper: #ffffff; --faint: #333333; --line: #999999; --shade: #ffffff; --link: #000000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .skip, .modebar-container { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  .notes { font-size: 8pt; }
  thead { display: table-header-group; }
  tr, figure, .notes { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  pre { white-space: pre-wrap; }
  /* the whole figure on a page's width */
  .plot { zoom: .64; }
}
"""

DRAW = """
"use strict";
for (const figure of document.querySelectorAll("figure")) {
  const drawing = JSON.parse(figure.querySelector("script").textContent);
  const options = {displaylogo: false, showSendToCloud: false, plotlyServerURL: ""};
  Plotly.newPlot(figure.querySelector(".plot"), drawing.data, drawing.layout, options);
}
"""

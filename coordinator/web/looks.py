"""The status page's style sheet: light and dark, from a phone to a desk."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2421; --soft: #5f6b66; --paper: #f6f7f5; --card: #fff; --edge: #dfe4e1;
  --main: #1b7a5a; --pale: #a5d3c1; --warn: #9a5b00; --bad: #b3261e; --mono: ui-monospace, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eae7; --soft: #98a49f; --paper: #121614; --card: #1b211e;
  --edge: #2d3632; --main: #5cc9a0; --pale: #2c6650; --warn: #e9b050; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.75rem 1.25rem 2rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
h1, h2, p, figure, ol, pre { margin: 0; }
h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: .95rem; font-weight: 600; }
code, pre { font-family: var(--mono); font-size: .88em; }
header p, figcaption p, .note, footer, .empty { color: var(--soft); font-size: .88rem; }
header strong { color: var(--ink); font-weight: 600; }
section { margin-top: 1.25rem; }
.tile, figure, .table, .steps { background: var(--card); border: 1px solid var(--edge); border-radius: 12px; }
.tiles { display: grid; gap: .75rem; grid-template-columns: 1.7fr repeat(5, 1fr); }
.tile { padding: .85rem 1rem; min-width: 0; }
.tile h2 { color: var(--soft); font-size: .82rem; font-weight: 500; }
.figure { font-size: 1.55rem; font-weight: 600; line-height: 1.35; letter-spacing: -.01em; white-space: nowrap; }
.figure small { font-size: .95rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }
.bad { border-color: var(--bad); }
.bad .figure, .bad .note { color: var(--bad); }
.bar-of { display: block; height: 6px; margin: .1rem 0 .45rem; border-radius: 3px; background: var(--edge); overflow: hidden; }
.bar-of span { display: block; height: 100%; border-radius: 3px; background: var(--main); }
.charts { display: grid; gap: .75rem; grid-template-columns: repeat(3, 1fr); }
figure { padding: .85rem 1rem .5rem; min-width: 0; display: flex; flex-direction: column; }
figcaption { margin-bottom: .5rem; }
svg { display: block; width: 100%; height: auto; margin-top: auto; overflow: visible; }
.grid { stroke: var(--edge); }
.tick { fill: var(--soft); font-size: 11px; }
.bar { fill: var(--main); }
.bar.open { fill: var(--pale); }
.line { fill: none; stroke: var(--main); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--main); stroke: var(--card); }
.turn { stroke: var(--warn); stroke-width: 1.5; stroke-dasharray: 3 3; }
.empty { margin: auto; padding: 2.5rem 1rem; text-align: center; }
.table h2, .steps h2 { padding: .85rem 1rem .35rem; }
.table { overflow-x: auto; padding-bottom: .35rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .45rem 1rem; text-align: left; white-space: nowrap; }
thead th { color: var(--soft); font-size: .8rem; font-weight: 500; border-bottom: 1px solid var(--edge); }
tbody th { font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid var(--edge); }
.number { text-align: right; }
.state::before { content: ""; display: inline-block; width: .5em; height: .5em; margin-right: .45em; border-radius: 50%;
  background: var(--main); vertical-align: .07em; }
.state.silent::before { background: var(--warn); border-radius: 1px; }
.state.gone { color: var(--soft); }
.state.gone::before { background: none; border: 1.5px solid var(--soft); }
.steps ol { padding: .25rem 1rem 1rem 2.4rem; }
.steps li { margin-top: .5rem; }
.steps pre { margin-top: .3rem; padding: .5rem .75rem; border-radius: 8px; background: var(--paper);
  border: 1px solid var(--edge); overflow-x: auto; }
footer { margin-top: 1.5rem; }
a { color: var(--main); margin-left: .35rem; }
@media (max-width: 66rem) {
  .tiles { grid-template-columns: repeat(3, 1fr); }
  .charts { grid-template-columns: 1fr 1fr; }
  figure:first-child { grid-column: 1 / -1; }
  svg { max-height: 15rem; }
  thead { position: absolute; clip-path: inset(50%); }
  table, tbody { display: block; }
  tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .1rem 1.4rem; padding: .7rem 1rem; }
  tbody tr + tr { border-top: 1px solid var(--edge); }
  tbody tr + tr > * { border-top: 0; }
  tbody th, tbody th.number { grid-column: 1 / -1; padding: 0; text-align: left; }
  tbody th.number::before { content: "Round "; }
  td, td.number { display: flex; justify-content: space-between; gap: .6rem; padding: 0; text-align: right; font-size: .85rem; }
  td::before { content: attr(data-of); color: var(--soft); }
}
@media (max-width: 44rem) {
  body { padding: 1.1rem .8rem 1.5rem; }
  h1 { font-size: 1.25rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .tile:first-child, .tile:last-child { grid-column: 1 / -1; }
  .charts { grid-template-columns: 1fr; }
}
@media (max-width: 28rem) { .tick { font-size: 13.5px; } }
"""

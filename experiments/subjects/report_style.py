"""The look of a comparison's page: light or dark as the reader's system is, from 320 pixels on."""

CSS = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1d2129; --soft: #5b6472;
  --line: #dcdfe4; --card: #ffffff; --anchor: #f1f2f0; --accent: #0b6bb0; --note: #fff6dd;
  --note-line: #e0b84c; --good: #0a7a4b; --bad: #b3361b; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e7eaee; --soft: #9aa4b2;
  --line: #313742; --card: #1b1f26; --anchor: #23272e; --accent: #6db8f2; --note: #2e2814;
  --note-line: #8f7530; --good: #4ecb92; --bad: #f0866c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem clamp(.9rem, 3vw, 2.2rem) 4rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.15rem); line-height: 1.2; margin: 0 0 .5rem;
  letter-spacing: -.015em; }
h2 { font-size: 1.32rem; margin: 3rem 0 .4rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .45rem; }
p { margin: .45rem 0 .9rem; max-width: 75ch; }
.soft, caption, .p { color: var(--soft); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0 0; font-size: .925rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.note { border-left: 4px solid var(--note-line); background: var(--note); padding: .55rem .9rem;
  border-radius: 0 6px 6px 0; margin: .9rem 0; max-width: 75ch; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); margin: .5rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom;
  white-space: normal; min-width: 7.5rem; font-size: .84rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card);
  font-weight: 500; min-width: 8.5rem; white-space: normal; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tr.anchor > * { background: var(--anchor); color: var(--soft); font-style: italic; }
tr.rule > * { border-top: 2px solid var(--soft) !important; }
td b { color: var(--ink); } .ci { display: block; font-size: .78rem; color: var(--soft); }
.up { color: var(--good); } .down { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; margin: .6rem 0 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem; min-width: 0; } figure svg { display: block; width: 100%; height: auto;
  max-width: 34rem; margin: 0 auto; } figcaption { font-size: .85rem; color: var(--soft);
  margin-top: .35rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .875rem; padding: 0;
  margin: .6rem 0; list-style: none; }
.pictures table { width: auto; } .pictures th, .pictures td { padding: .45rem .5rem;
  text-align: left; } .pictures thead th { min-width: 0; }
.pictures .given { background: var(--anchor); border-right: 2px solid var(--soft); }
.pictures th:first-child { position: static; min-width: 0; }
.strip { display: flex; gap: 4px; } .strip img { width: 64px; height: 64px; border-radius: 4px;
  object-fit: contain; display: block; } .pixels { image-rendering: pixelated; }
.prompt { font-weight: 400; min-width: 9rem; max-width: 13rem; white-space: normal;
  font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.2rem;
  font-size: .92rem; } dt { color: var(--soft); } dd { margin: 0; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); padding: .8rem;
  border-radius: 8px; font-size: .8rem; line-height: 1.45; }
@media (max-width: 560px) { th, td { padding: .42rem .55rem; }
  dl { grid-template-columns: minmax(0, 1fr); } dt { margin-top: .4rem; }
  th:first-child { min-width: 6.5rem; } thead th { min-width: 6rem; } }
@media print { .scroll { overflow: visible; } h2 { break-after: avoid; } }
"""

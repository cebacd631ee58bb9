"""How the page of the report looks."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: #fff; color: #222;
  overflow-wrap: anywhere;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 10px; }
h2 { font-size: 18px; margin: 34px 0 8px; padding-top: 10px; border-top: 1px solid #d8d8d8; }
h3 { font-size: 14px; margin: 22px 0 6px; }
p, li { max-width: 110ch; }
p { margin: 6px 0; }
p.remark { color: #555; font-size: 12.5px; margin: 4px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; }
dt { color: #666; }
dd { margin: 0; }
nav a { margin-right: 12px; color: #0b5394; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.numbers { font-size: 13px; margin: 6px 0; }
.numbers th, .numbers td { padding: 4px 7px; text-align: right; border-bottom: 1px solid #e6e6e6;
  white-space: nowrap; }
.numbers thead th { border-bottom: 1.5px solid #555; border-top: 1.5px solid #555; font-weight: 600; }
.numbers thead th[title] { cursor: help; }
.numbers tbody tr:last-child td { border-bottom: 1.5px solid #555; }
.numbers .name { text-align: left; white-space: normal; overflow-wrap: break-word; max-width: 22ch; }
.numbers .first td { border-top: 1px solid #999; font-weight: 600; }
.best { font-weight: 700; }
.gap { color: #8a4b00; }
.chip { vertical-align: -2px; margin-right: 5px; }
.warning { background: #fff3cd; border-left: 4px solid #d55e00; padding: 6px 12px; font-weight: 600; }
figure { margin: 10px 0 16px; break-inside: avoid; }
figcaption { margin-bottom: 4px; }
figcaption small { color: #666; }
.row { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: flex-start; }
.row > div { min-width: 0; }
.bar { margin: 2px 0 0 70px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 4px 0; }
svg { max-width: 100%; height: auto; font-family: inherit; }
.pictures th { font-weight: 400; font-size: 11.5px; color: #555; padding: 1px; }
.pictures th.name { text-align: left; width: 112px; min-width: 112px; max-width: 112px;
  padding-right: 8px; color: #222; font-size: 13px; }
.pictures th.name small { color: #8a4b00; display: block; }
.pictures td { padding: 1px; text-align: center; vertical-align: middle; }
.pictures .apart { width: 12px; min-width: 12px; }
.pictures img, .pictures .none { display: block; width: 122px; outline: 1px solid #dedede;
  outline-offset: -1px; }
.pictures .none { height: 122px; padding: 42px 12px 0; background: #ececec; color: #8a4b00;
  font-size: 11.5px; }
footer { margin-top: 40px; border-top: 1px solid #d8d8d8; color: #555; font-size: 12.5px; }
@page { size: A4 landscape; margin: 10mm; }
@media print {
  body { max-width: none; padding: 0; zoom: 0.9; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  section.scene { break-before: page; }
}
"""

"""Style sheet of the report: light and dark, from a phone to a wide screen."""

STYLE = """
:root{--bg:#f6f7f9;--panel:#fff;--ink:#16202c;--soft:#5b6878;--line:#e2e6eb;--c1:#2a6fd6;--c2:#d9622b;
--rival:#a9b4c2;--code:#f1f3f6}
@media(prefers-color-scheme:dark){:root{--bg:#10151b;--panel:#181f27;--ink:#e6ebf1;--soft:#98a5b5;--line:#2b3542;
--c1:#63a1f5;--c2:#f08a58;--rival:#566273;--code:#121820}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;margin:0;overflow-wrap:anywhere;line-height:1.25}
h2{font-size:1.1rem;margin:0 0 10px}
header p,.note,small{color:var(--soft)}header p{margin:4px 0 0}
section{background:var(--panel);border:1px solid var(--line);border-radius:12px;padding:18px;
margin-top:18px}
.verdict{font-size:1.15rem;margin:0 0 14px}.note{font-size:.85rem;margin:12px 0 0}
.bar{display:grid;grid-template-columns:8.2rem 1fr 3.4rem;gap:10px;align-items:center;
margin:7px 0}
.bar i{background:var(--code);border-radius:6px;overflow:hidden}
.bar i b{display:block;height:20px;background:var(--rival);border-radius:6px}
.bar.ours i b{background:var(--c1)}.bar.ours span,.bar.ours em{font-weight:650}
.bar em{font-style:normal;font-variant-numeric:tabular-nums;text-align:right}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:14px}
.card{display:flex;flex-direction:column}
.card strong{font-size:1.45rem;font-weight:650;line-height:1.25}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));
gap:22px 26px}
figure{margin:0;min-width:0}
figcaption{display:flex;flex-wrap:wrap;gap:2px 10px;font-size:.92rem;align-items:center}
figcaption span{color:var(--soft)}.key{display:inline-flex;align-items:center;gap:6px}
.key i{width:14px;height:3px;border-radius:2px}.k1{background:var(--c1)}.k2{background:var(--c2)}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:13px;font-variant-numeric:tabular-nums}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}polyline.c1{stroke:var(--c1)}
polyline.c2{stroke:var(--c2)}
circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}.grid{stroke:var(--line)}
.axis{stroke:var(--soft)}
.level{stroke:var(--soft);stroke-dasharray:4 4}
svg .levelname{font-size:12px;paint-order:stroke;stroke:var(--panel);stroke-width:4px}
.hover rect{fill:transparent}.hover line{stroke:transparent}.hover:hover line{stroke:var(--soft)}
article{margin-top:12px}
pre,td:first-child{font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{max-height:18rem;overflow-y:auto;background:var(--code);border-radius:8px;padding:12px;
margin:4px 0 0;white-space:pre-wrap;
overflow-wrap:anywhere}
details{border-top:1px solid var(--line);padding:9px 0}summary{cursor:pointer;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;margin-top:8px;font-size:.92rem}
td:first-child{width:46%}th{text-align:left;color:var(--soft);font-weight:500}
th,td{padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
"""

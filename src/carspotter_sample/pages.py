"""The HTML of the sample site. Everything is inline: the site needs nothing from anywhere else."""

PLACEHOLDER = "data:image/gif;base64,R0lGODlhAQABAIAAAMLCwgAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="

_STYLE = """
*{{box-sizing:border-box}}
body{{margin:0;font:15px/1.45 system-ui,'Liberation Sans',sans-serif;color:#1d2733;background:#eef1f4}}
header{{background:#0d3b66;color:#fff;padding:14px 24px;display:flex;align-items:center;gap:28px}}
header a{{color:#fff;text-decoration:none}}header b{{font-size:22px;letter-spacing:.3px}}
header b i{{color:#f4a52a;font-style:normal}}
nav{{display:flex;gap:18px;font-size:14px;opacity:.92}}main{{max-width:1180px;margin:0 auto;padding:22px}}
h1{{font-size:25px;margin:4px 0 2px}}.sub{{color:#5c6b7a;margin:0 0 14px}}
.chip{{display:inline-block;padding:6px 14px;margin:0 8px 8px 0;border-radius:18px;background:#fff;
border:1px solid #cfd8e0;color:#23405c;text-decoration:none;font-size:14px}}
.chip.on{{background:#0d3b66;color:#fff;border-color:#0d3b66}}
.grid{{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:18px;margin-top:10px}}
.listing{{background:#fff;border-radius:10px;overflow:hidden;box-shadow:0 1px 4px #0002;position:relative}}
.gallery{{display:flex;overflow-x:auto;overflow-y:hidden;scrollbar-width:none;scroll-snap-type:x mandatory;
height:204px;background:#d7dde3}}
.gallery img{{flex:0 0 100%;width:100%;height:204px;object-fit:cover;scroll-snap-align:start}}
.count{{position:absolute;right:10px;top:172px;background:#000a;color:#fff;font-size:12px;padding:2px 9px;
border-radius:10px}}
.facts{{padding:12px 14px 15px}}.title{{font-size:16px;margin:0 0 2px}}
.price{{font-weight:700;font-size:20px;color:#0d3b66}}
.facts p{{margin:0}}.line{{color:#5c6b7a;font-size:14px}}
.contact{{display:block;margin-top:11px;text-align:center;padding:8px;border-radius:7px;background:#f4a52a;
color:#25190a;text-decoration:none;font-weight:600}}
.tile{{background:#fff;border-radius:10px;overflow:hidden;text-decoration:none;color:#1d2733;
box-shadow:0 1px 4px #0002;padding-bottom:12px}}
.tile img,.blank{{width:100%;height:165px;object-fit:cover;background:#d7dde3;display:block}}
.tile b,.tile span{{display:block;padding:0 14px}}
.tile b{{padding-top:10px;font-size:17px}}.tile span{{color:#5c6b7a}}
#end-of-results,.loading{{text-align:center;color:#5c6b7a;padding:26px 0}}
footer{{text-align:center;color:#7a8794;font-size:13px;padding:22px}}
"""

_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    '<link rel="icon" href="data:,"><title>{title} · GaadiBazaar</title><style>'
    + _STYLE
    + "</style></head><body><header>"
    '<a href="/"><b>Gaadi<i>Bazaar</i></b></a><nav><a href="/used/swift">Swift</a><a href="/used/wagonr">WagonR</a>'
    '<a href="/">All models</a></nav></header><main>'
)
_FOOT = (
    "</main><footer>GaadiBazaar is a sample site with drawn cars. "
    "No car, seller or number plate on it is real.</footer>"
)

HOME_PAGE = (
    _HEAD.replace("{title}", "Used cars")
    + '<h1>Find a used car</h1><p class="sub">Checked by nobody, drawn by a computer.</p>'
    + '<div class="grid">{tiles}</div>'
    + _FOOT
    + "</body></html>"
)

GRID_PAGE = (
    _HEAD.replace("{title}", "{name}")
    + '<h1>{name}</h1><p class="sub"><span id="total">{count}</span> cars</p><div>{chips}</div>'
    + '<div class="grid" id="results">{cards}</div>'
    + '<p class="loading" id="loading" hidden>Loading more cars …</p><div id="sentinel"></div>'
    + _FOOT
    + """<script>
const [results, sentinel, loading] = ['results', 'sentinel', 'loading'].map(id => document.getElementById(id));
let page = 1, more = {more}, busy = false;
const pictures = new IntersectionObserver(entries => entries.forEach(entry => {{
  if (!entry.isIntersecting) return;
  const picture = entry.target;
  picture.sizes = '300px';
  picture.srcset = picture.dataset.srcset;
  picture.src = picture.dataset.src;
  pictures.unobserve(picture);
}}), {{rootMargin: '200px'}});
const watch = root => root.querySelectorAll('img.photo').forEach(picture => pictures.observe(picture));
function end() {{
  if (document.getElementById('end-of-results')) return;
  const line = document.createElement('p');
  line.id = 'end-of-results';
  line.textContent = 'You have seen all cars.';
  sentinel.before(line);
}}
async function load() {{
  if (busy || !more) return;
  busy = true;
  loading.hidden = false;
  try {{
    const query = new URLSearchParams({{model: '{model}', city: {city}, page: page + 1}});
    const answer = await fetch('/api/listings?' + query);
    if (!answer.ok) throw new Error(answer.status);
    const body = await answer.json();
    const holder = document.createElement('template');
    holder.innerHTML = body.listings.join('');
    watch(holder.content);
    results.append(holder.content);
    page += 1;
    more = body.more;
  }} catch (error) {{
    setTimeout(near, 1000);
  }} finally {{
    busy = false;
    loading.hidden = true;
  }}
  if (more) near(); else end();
}}
const near = () => {{ if (sentinel.getBoundingClientRect().top < innerHeight + 300) load(); }};
watch(document);
if (more) {{
  new IntersectionObserver(entries => entries[0].isIntersecting && load(), {{rootMargin: '300px'}}).observe(sentinel);
}} else end();
</script></body></html>"""
)

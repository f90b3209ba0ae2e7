// What the figures of every page share.
const root = document.documentElement;
const css = name => getComputedStyle(root).getPropertyValue("--" + name).trim();
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
// Colour and shape both tell families apart, so that neither colour vision nor print decides.
const LOOKS = {
  pixel_autoencoder: ["#3b6fb6", "#7aa7e8", "circle"], masked_image: ["#2f8fa8", "#6cc7de", "square"],
  image_ssl: ["#22805a", "#6cc79f", "diamond"], masked_video: ["#a07800", "#e0be55", "triangle-up"],
  masked_video_latent: ["#d0661a", "#f2a268", "triangle-down"], next_latent: ["#bb2f24", "#f08a80", "pentagon"],
  diffusion: ["#7650a8", "#b99ae6", "hexagon"], shortcut_forcing: ["#9c2c62", "#e68fb8", "star"],
  inverse_dynamics: ["#1d2126", "#ffffff", "star-diamond"], random: ["#8a9097", "#878e96", "x"],
  floor: ["#8a9097", "#878e96", "cross"], reference: ["#77705f", "#b8b09b", "diamond-open"],
};
const SPARE = [["#5a6b1f", "#b9cc6c", "hourglass"], ["#4b5fa0", "#9db0f0", "bowtie"], ["#8a4b2a", "#d9a07f", "hexagram"]];
const others = [];
function look(family) {
  if (!LOOKS[family] && !others.includes(family)) others.push(family);
  const [light, dark, symbol] = LOOKS[family] || SPARE[others.indexOf(family) % SPARE.length];
  return { color: isDark() ? dark : light, symbol };
}
const layout = extra => {
  const axis = { gridcolor: css("grid"), zerolinecolor: css("rule"), linecolor: css("rule"), tickfont: { size: 11 }, automargin: true };
  const base = { font: { family: css("sans"), size: 12, color: css("soft") }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 12, t: 8, b: 44 }, showlegend: false, hovermode: "closest", dragmode: false,
    hoverlabel: { bgcolor: css("panel"), bordercolor: css("rule"), font: { color: css("ink"), family: css("sans"), size: 12 } } };
  const { xaxis, yaxis, ...rest } = extra;
  return { ...base, ...rest, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis } };
};
const CONFIG = { displayModeBar: false, responsive: true };
const fixed = (value, digits = 2) => (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits).replace("-", "−");
const span = e => e.low == null ? "" : ` [${fixed(e.low)} to ${fixed(e.high)}]`;
const bars = points => ({ type: "data", symmetric: false, array: points.map(e => e.high == null ? 0 : e.high - e.value), arrayminus: points.map(e => e.low == null ? 0 : e.value - e.low) });
const text = s => s.replace(/&/g, "&amp;").replace(/</g, "&lt;");
function place(holder, title) {
  const box = document.createElement("div"), plot = document.createElement("div");
  box.className = "plot";
  if (title) { const head = document.createElement("h3"); head.textContent = title; box.append(head); }
  box.append(plot); holder.append(box);
  return plot;
}
const holderOf = id => { const node = document.getElementById(id); if (node) node.replaceChildren(); return node; };
const marker = (points, size) => ({ size, symbol: points.map(p => look(p.family).symbol), color: points.map(p => look(p.family).color),
  line: { width: 1, color: points.map(p => look(p.family).color) } });
const SHAPES = { circle: "M8 2a6 6 0 1 0 .01 0z", square: "M3 3h10v10H3z", diamond: "M8 1l7 7-7 7-7-7z", "triangle-up": "M8 2l7 12H1z", "triangle-down": "M8 14L1 2h14z",
  pentagon: "M8 1l7 5-2.7 8.5H3.7L1 6z", hexagon: "M4 2h8l4 6-4 6H4L0 8z", star: "M8 0l2 5.5 6 .2-4.7 3.7L13 15l-5-3.3L3 15l1.700-5.600L0 5.700l6-.2z",
  "star-diamond": "M8 0l2.500 5.500L16 8l-5.500 2.500L8 16l-2.500-5.500L0 8l5.500-2.500z", x: "M3 1l5 5 5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5-5-5z", cross: "M6 1h4v5h5v4h-5v5H6v-5H1V6h5z",
  "diamond-open": "M8 1l7 7-7 7-7-7zM8 4L4 8l4 4 4-4z", hourglass: "M2 2h12L2 14h12z", bowtie: "M2 2v12L14 2v12z", hexagram: "M8 0l3 5h5l-3 3 3 3h-5l-3 5-3-5H0l3-3-3-3h5z" };
function drawKey(points) {
  const list = holderOf("key");
  points.forEach(p => {
    const item = document.createElement("li"), { color, symbol } = look(p.family);
    item.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${SHAPES[symbol]}" fill="${color}" fill-rule="evenodd"/></svg>`;
    item.append(p.name); list.append(item);
  });
}

// Search in the browser: INDEX (index.js) holds one entry a section, {page, title, url, text}. All words must be found;
// a word in a title counts more than one in the text.
const box = document.getElementById("search"), hits = document.getElementById("hits");

function score(entry, words) {
  let sum = 0;
  for (const word of words) {
    const title = (entry.title + " " + entry.page).toLowerCase();
    const names = title.split(/[^\w]+/);
    if (names.includes(word)) sum += 20;
    else if (title.includes(word)) sum += 8;
    else if (entry.text.toLowerCase().includes(word)) sum += 1;
    else return 0;
  }
  return sum;
}

function excerpt(entry, word) {
  const at = Math.max(0, entry.text.toLowerCase().indexOf(word) - 30);
  return (at ? "… " : "") + entry.text.slice(at, at + 110);
}

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? INDEX.map(e => [score(e, words), e]).filter(h => h[0]).sort((a, b) => b[0] - a[0]).slice(0, 20) : [];
  hits.replaceChildren(...found.map(([, entry]) => {
    const item = document.createElement("li"), link = document.createElement("a"), note = document.createElement("small");
    link.href = UP + entry.url;
    link.textContent = entry.title === entry.page ? entry.page : `${entry.page} › ${entry.title}`;
    note.textContent = excerpt(entry, words[0]);
    link.append(note);
    item.append(link);
    return item;
  }));
  if (words.length && !found.length) {
    const item = document.createElement("li");
    item.textContent = "Nothing found.";
    hits.append(item);
  }
  hits.hidden = !words.length;
  if (hits.querySelector("a")) hits.querySelector("a").classList.add("on");
}

function move(step) {
  const links = [...hits.querySelectorAll("a")], now = links.findIndex(l => l.classList.contains("on"));
  if (!links.length) return;
  links[now]?.classList.remove("on");
  const next = links[(now + step + links.length) % links.length];
  next.classList.add("on");
  next.scrollIntoView({ block: "nearest" });
}

box.addEventListener("input", show);
box.addEventListener("keydown", event => {
  if (event.key === "ArrowDown") { move(1); event.preventDefault(); }
  if (event.key === "ArrowUp") { move(-1); event.preventDefault(); }
  if (event.key === "Enter") hits.querySelector("a.on")?.click();
  if (event.key === "Escape") { box.value = ""; show(); box.blur(); }
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && document.activeElement !== box) { box.focus(); event.preventDefault(); }
});
document.addEventListener("click", event => { if (!hits.contains(event.target) && event.target !== box) hits.hidden = true; });

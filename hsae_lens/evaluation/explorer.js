// Follows example tokens latent by latent: a slider sets the budget, a click chooses the token.
for (const root of document.querySelectorAll(".explorer")) {
  const texts = JSON.parse(root.querySelector("script").textContent);
  const [chooser, slider, shown, strip, detail] =
    ["texts", "slider", "shown", "tokens", "detail"].map((name) => root.querySelector("." + name));
  const K = texts[0].explained[0].length - 1;
  // Every budget up to 16, then steps of about an eighth.
  const steps = [0];
  while (steps.at(-1) < K) steps.push(Math.min(K, Math.max(steps.at(-1) + 1, Math.round(steps.at(-1) * 1.125))));
  slider.max = steps.length - 1;
  let text = texts[0];
  let chosen = 0;

  const make = (tag, content, attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = content;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0) + "%";

  function drawTexts() {
    chooser.replaceChildren(...texts.map((candidate, n) => {
      const button = make("button", `Text ${n + 1}`, { "aria-pressed": candidate === text });
      button.onclick = () => { text = candidate; start(); };
      return button;
    }));
  }

  function draw() {
    const k = steps[slider.value];
    shown.textContent = `k = ${k}`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    strip.replaceChildren(...text.tokens.map((token, n) => {
      const button = make("button", visible(token), { "aria-pressed": n === chosen });
      const share = Math.max(0, Math.min(1, text.explained[n][k]));
      if (text.judged[n]) button.style.background = `rgba(0, 114, 178, ${(0.6 * share).toFixed(3)})`;
      else button.className = "out";
      button.title = text.judged[n] ? percent(share) + " explained" : "left as it is";
      button.onclick = () => { chosen = n; draw(); };
      return button;
    }));
    detail.replaceChildren(latents(k), predictions(k));
  }

  function latents(k) {
    const panel = make("div", "");
    const explained = text.explained[chosen];
    panel.append(make("h3", `“${visible(text.tokens[chosen])}”: ${percent(Math.max(0, explained[k]))} of its activation explained`));
    const list = make("ul", "", { class: "bars" });
    const named = text.latents[chosen].slice(0, k);
    const largest = Math.max(...named.map((latent) => latent[1]), 1e-9);
    named.forEach(([latent, value], rank) => {
      const row = make("li", "");
      const bar = make("i", "", { style: `width:${100 * value / largest}%` });
      const adds = 100 * (explained[rank + 1] - explained[rank]);
      row.append(make("span", `${rank + 1}.`), make("span", `#${latent}`), bar,
        make("span", `${adds < 0 ? "−" : "+"}${Math.abs(adds).toFixed(1)}%`));
      row.title = `activation ${value}`;
      list.append(row);
    });
    panel.append(list);
    if (k > named.length) panel.append(make("p", `… and ${k - named.length} more`));
    return panel;
  }

  function predictions(k) {
    const panel = make("div", "");
    const at = text.budgets.findLastIndex((budget) => budget <= k);
    const table = make("table", "");
    const row = (name, guesses) => {
      const line = make("tr", "");
      line.append(make("td", name), ...guesses.map(([token, p]) => make("td", `${visible(token)} ${percent(p)}`)));
      table.append(line);
    };
    panel.append(make("h3", "What the model says next"));
    if (at >= 0) row(`k = ${text.budgets[at]}`, text.predictions[at][chosen]);
    row("the model itself", text.predictions.at(-1)[chosen]);
    const scroll = make("div", "", { class: "scroll" });
    scroll.append(table);
    panel.append(scroll);
    if (at >= 0) panel.append(make("p", "with every coloured token reconstructed at this budget"));
    return panel;
  }

  function start() {
    chosen = Math.max(0, text.judged.indexOf(true));
    drawTexts();
    draw();
  }
  slider.oninput = draw;
  slider.value = steps.findIndex((k) => k >= Math.min(8, K));
  start();
}

// Follows example tokens latent by latent: a slider sets the budget, a click chooses the token. Where
// the SAE is calibrated, the budget may be a mean one, of which each token uses its own number.
for (const root of document.querySelectorAll(".explorer")) {
  const texts = JSON.parse(root.querySelector("script").textContent);
  const [chooser, modes, slider, shown, strip, detail] =
    ["texts", "modes", "slider", "shown", "tokens", "detail"].map((name) => root.querySelector("." + name));
  const calibrated = texts.every((text) => text.mean);
  const K = calibrated ? texts[0].mean.lengths[0].length : texts[0].explained[0].length - 1;
  // Every budget up to 16, then steps of about an eighth.
  const steps = [0];
  while (steps.at(-1) < K) steps.push(Math.min(K, Math.max(steps.at(-1) + 1, Math.round(steps.at(-1) * 1.125))));
  slider.max = steps.length - 1;
  let text = texts[0];
  let chosen = 0;
  let onAverage = false;

  const make = (tag, content, attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = content;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0) + "%";

  const named = (k) => onAverage ? `${k} on average` : `k = ${k}`;
  // How many latents a token uses.
  const used = (n, k) => !onAverage ? k : k > 0 ? text.mean.lengths[n][k - 1] : 0;

  function drawModes() {
    const names = calibrated ? ["each token the same", "on average"] : [];
    modes.replaceChildren(...names.map((name, n) => {
      const button = make("button", name, { "aria-pressed": onAverage === Boolean(n) });
      button.onclick = () => { onAverage = Boolean(n); drawModes(); draw(); };
      return button;
    }));
  }

  function drawTexts() {
    chooser.replaceChildren(...texts.map((candidate, n) => {
      const button = make("button", `Text ${n + 1}`, { "aria-pressed": candidate === text });
      button.onclick = () => { text = candidate; start(); };
      return button;
    }));
  }

  function draw() {
    const k = steps[slider.value];
    shown.textContent = named(k);
    slider.setAttribute("aria-valuetext", shown.textContent);
    strip.replaceChildren(...text.tokens.map((token, n) => {
      const button = make("button", visible(token), { "aria-pressed": n === chosen });
      const latents = used(n, k);
      const share = Math.max(0, Math.min(1, text.explained[n][latents]));
      if (text.judged[n]) button.style.background = `rgba(0, 114, 178, ${(0.6 * share).toFixed(3)})`;
      else button.className = "out";
      button.title = text.judged[n] ? percent(share) + " explained" : "left as it is";
      if (onAverage && text.judged[n]) {
        button.append(make("small", latents));
        button.title += ` by ${latents} latent${latents === 1 ? "" : "s"}`;
      }
      button.onclick = () => { chosen = n; draw(); };
      return button;
    }));
    detail.replaceChildren(explanation(k), predictions(k));
  }

  function explanation(k) {
    const panel = make("div", "");
    const token = `“${visible(text.tokens[chosen])}”`;
    if (onAverage && !text.judged[chosen]) {
      panel.append(make("h3", `${token}: left as it is`));
      return panel;
    }
    const explained = text.explained[chosen];
    const latents = used(chosen, k);
    const share = percent(Math.max(0, explained[latents]));
    const number = onAverage ? `${latents} latent${latents === 1 ? "" : "s"}, ` : "";
    panel.append(make("h3", `${token}: ${number}${share} of its activation explained`));
    const list = make("ul", "", { class: "bars" });
    const bars = text.latents[chosen].slice(0, latents);
    const largest = Math.max(...bars.map((latent) => latent[1]), 1e-9);
    bars.forEach(([latent, value], rank) => {
      const row = make("li", "");
      const bar = make("i", "", { style: `width:${100 * value / largest}%` });
      const adds = 100 * (explained[rank + 1] - explained[rank]);
      row.append(make("span", `${rank + 1}.`), make("span", `#${latent}`), bar,
        make("span", `${adds < 0 ? "−" : "+"}${Math.abs(adds).toFixed(1)}%`));
      row.title = `activation ${value}`;
      list.append(row);
    });
    panel.append(list);
    if (latents > bars.length) panel.append(make("p", `… and ${latents - bars.length} more`));
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
    const reconstructed = onAverage ? text.mean.predictions : text.predictions;
    if (at >= 0) row(named(text.budgets[at]), reconstructed[at][chosen]);
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
    drawModes();
    draw();
  }
  slider.oninput = draw;
  slider.value = steps.findIndex((k) => k >= Math.min(8, K));
  start();
}

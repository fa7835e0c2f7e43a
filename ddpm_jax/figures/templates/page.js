const root = document.documentElement;
const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const label = () => {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `${button.textContent} colours`);
};
button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
system.addEventListener("change", label);
button.hidden = false;
label();

for (const film of document.querySelectorAll(".film:has(.controls)")) {
  const frames = [...film.querySelectorAll("img")];
  const [controls, play, slider, told] = [".controls", "button", "input", ".label"].map((which) => film.querySelector(which));
  const name = slider.getAttribute("aria-label");
  let timer = 0;
  const isLast = () => slider.value === slider.max;
  const show = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
    told.textContent = frames[Number(slider.value)].dataset.label;
    slider.setAttribute("aria-valuetext", told.textContent);
  };
  const say = (word) => { play.textContent = word; play.setAttribute("aria-label", `${word}: ${name}`); };
  const stop = () => { clearInterval(timer); timer = 0; say("Play"); };
  const next = () => { slider.stepUp(); show(); if (isLast()) stop(); };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (isLast()) { slider.value = 0; show(); }
    timer = setInterval(next, Math.max(80, Math.min(400, 6000 / frames.length)));
    say("Pause");
  });
  slider.addEventListener("input", () => { stop(); show(); });
  addEventListener("beforeprint", () => { stop(); slider.value = slider.max; show(); });
  controls.hidden = false;
}

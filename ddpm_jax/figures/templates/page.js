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

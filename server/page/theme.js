// Runs before the first paint, so that a chosen theme never flashes the other one. "system" follows the device.
(() => {
  let choice = "system";
  try { choice = localStorage.getItem("sharedrag.theme") || "system"; } catch { /* storage is off: follow the device */ }
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
})();

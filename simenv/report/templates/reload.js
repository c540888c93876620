"use strict";
// The page is written anew as rounds end; an open one reads itself again until the box is ticked.
(() => {
const box = document.getElementById("pause");
const next = () => setTimeout(() => { if (!box.checked) location.reload(); }, 1000 * Number(box.dataset.seconds));
box.addEventListener("change", () => { if (!box.checked) next(); });
next();
})();

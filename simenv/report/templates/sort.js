"use strict";
// Tables of class "sortable": a click or Enter on a head sorts by that column, numbers by their value.
(() => {
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("n"));
      const sign = down ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        const empty = (a === "–") - (b === "–");
        if (empty) return empty;
        const numbers = [Number(a), Number(b)];
        return sign * (numbers.some(Number.isNaN) ? String(a).localeCompare(String(b)) : numbers[0] - numbers[1]);
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
    });
  });
}
})();

// The field above the table of papers hides the rows that do not contain what was typed.
document.addEventListener("DOMContentLoaded", () => {
  const field = document.getElementById("paper-search");
  if (!field) return;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    document.querySelectorAll("article table tbody tr").forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
  });
});

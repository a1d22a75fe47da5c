// The worklist as a table for spreadsheets and for "chestxray evaluate --scores". Pure.

const COLUMNS = "path,score,prediction,operating_point,threshold,sha256,reason,notes,model,model_sha256,notice".split(",");

/** films: {name, outcome, answer, failure} as the list holds them; point: the chosen operating point. */
export function csvOf(films, point) {
  const rows = films.map(({ name, outcome, answer, failure }) => {
    const classified = answer?.gate.accepted;
    return [
      name,
      classified ? answer.probability : "",
      classified ? outcome : "",
      point?.name,
      point?.threshold,
      answer?.film_sha256,
      failure ? `${failure.title}. ${failure.detail}` : answer ? answer.gate.reason : "not answered",
      (answer?.notes ?? []).join("; "),
      answer?.model,
      answer?.model_sha256,
      answer?.notice,
    ];
  });
  return `${[COLUMNS, ...rows].map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}

/** A text that a spreadsheet would run as a formula gets an apostrophe in front. Source: OWASP, CSV injection. */
export function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[\s]*[=+\-@\t\r]/.test(value ?? "") ? `'${value}` : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

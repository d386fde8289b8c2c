// Comma-separated values (RFC 4180), whose texts no spreadsheet takes for a formula.

// Spreadsheets skip blanks, and accept the full-width forms of the signs.
const FORMULA = /^[\s\p{C}]*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]/u;

const cell = (value) => {
  if (typeof value === "number") return String(value);
  const text = value ?? "";
  return `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
};

// Returns a file of rows; it begins with the mark by which spreadsheets recognise UTF-8.
export const csv = (rows) => `\ufeff${rows.map((row) => `${row.map(cell).join()}\r\n`).join("")}`;

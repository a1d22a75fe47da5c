// Where the service is. Empty: where this page came from. Another origin has to allow this page, and this
// page's Content-Security-Policy has to name that origin under connect-src.
export const API = "";

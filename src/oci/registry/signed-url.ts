/** When a signed URL ends: Amazon (X-Amz-Date + X-Amz-Expires), Google (X-Goog-*), CloudFront and older S3 (Expires), Azure (se). Pure. */

/** Milliseconds since 1970, or undefined when the URL does not say. */
export function signedUrlExpiry(url: URL): number | undefined {
  const query = new Map([...url.searchParams].map(([name, value]) => [name.toLowerCase(), value]));
  for (const vendor of ["x-amz", "x-goog"]) {
    const date = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(query.get(`${vendor}-date`) ?? "");
    const seconds = Number(query.get(`${vendor}-expires`) ?? Number.NaN);
    if (date !== null && Number.isFinite(seconds)) {
      const [year, month, day, hour, minute, second] = date.slice(1).map(Number);
      return Date.UTC(year!, month! - 1, day, hour, minute, second) + seconds * 1000;
    }
  }
  const expires = query.get("expires");
  if (expires !== undefined && /^\d{9,11}$/.test(expires)) return Number(expires) * 1000;
  const until = query.get("se");
  if (until !== undefined && /^\d{4}-\d\d-\d\d/.test(until)) {
    const time = Date.parse(until);
    if (!Number.isNaN(time)) return time;
  }
  return undefined;
}

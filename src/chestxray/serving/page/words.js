// Numbers and outcomes in words. Pure: nothing here touches the document or the network.

/** What the page says of a film at an operating point. */
export function verdict(answer, point) {
  if (!answer.gate.accepted) return "refused";
  return answer.probability >= point.threshold ? "pneumonia" : "normal";
}

export const HEADLINES = {
  pneumonia: "Pneumonia suspected",
  normal: "No pneumonia suspected",
  refused: "Not answered",
  failed: "Error",
  asking: "Reading the film",
  empty: "No film yet",
};

/** 0.9732 -> "97.3%"; what is not certain is never shown as certain. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1%";
  if (share < 1 && share > 0.9995) return "> 99.9%";
  return `${(100 * share).toFixed(1)}%`;
}

/** 95% interval of a proportion. Source: Wilson, JASA 22 (1927). */
export function wilson(successes, count) {
  if (count === 0) return [0, 1];
  const z = 1.959963984540054;
  const share = successes / count;
  const centre = share + (z * z) / (2 * count);
  const spread = z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  const scale = 1 + (z * z) / count;
  return [Math.max(0, (centre - spread) / scale), Math.min(1, (centre + spread) / scale)];
}

/** {share, interval, hits, count}: a number never travels alone. */
export function measured(share, count) {
  const hits = Math.round(share * count);
  const [low, high] = wilson(hits, count).map((end) => (100 * end).toFixed(1));
  return { share: percent(share), interval: `${low} to ${high}%`, hits, count };
}

const SPLITS = { train: "training films", val: "validation films", test: "test films" };

export const splitName = ({ chosen_on: split }) => SPLITS[split] ?? split;

export function milliseconds(ms) {
  return ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function bytes(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1000))} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

export const abbreviated = (hash) => hash.slice(0, 12);

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

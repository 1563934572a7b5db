/** States of keys and teams. */

const DAY_SECONDS = 86_400;

/** A key that expires within this time is marked. */
const EXPIRING_SECONDS = 14 * DAY_SECONDS;

/** @returns {'active'|'expiring'|'expired'|'revoked'} */
export function keyState(key, now = Date.now() / 1000) {
  if (key.revoked_at) return 'revoked';
  if (!key.expires_at) return 'active';
  if (key.expires_at <= now) return 'expired';
  return key.expires_at - now < EXPIRING_SECONDS ? 'expiring' : 'active';
}

/** Why a key or team cannot be changed here; null if it can. */
export function readOnlyReason(record) {
  if (record.declared_in) return `${record.declared_in} declares it. Change it in that file; raises are possible here.`;
  return record.revoked_at ? 'A revoked key cannot be changed. Make a new one.' : null;
}

/** The overlaps of former secrets that still work. */
export function overlapsOf(key, now = Date.now() / 1000) {
  return (key.former_secrets_expire_at ?? []).filter((end) => end > now);
}

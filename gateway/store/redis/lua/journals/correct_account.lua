-- KEYS: the account, and its open purchases.
-- ARGV: account, its rate ('' = none), images that remain ('' = unknown), microseconds for which its
-- queue stops.
local account = open_account(ARGV[1], tonumber(ARGV[2]), nil)
local remaining = tonumber(ARGV[3])
if account.rate and remaining then
  account.level = math.min(account.level, math.max(0, remaining) * UNIT)
end
account.stopped = math.max(account.stopped, now + math.min(tonumber(ARGV[4]), MAX_STOP))
write_account(account)
return 0

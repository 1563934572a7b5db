-- KEYS: books. ARGV: the records.
local day = ledger_day()
for _, record in ipairs(ARGV) do
  append_record(day, record)
end
return 0

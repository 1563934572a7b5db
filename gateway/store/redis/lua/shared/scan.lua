-- Cursors that are kept: `<cursor> <run id>`. Another process has its hash tables in another order,
-- so with a cursor of one that was restarted or replaced, a scan starts over.

local function read_run_id()
  local info = redis.pcall('INFO', 'server') -- an ACL may forbid it
  return type(info) == 'string' and info:match('run_id:(%x+)') or ''
end

local function read_kept_cursor(kept)
  local cursor, run_id = kept:match('^(%d+) ?(.*)$')
  return run_id == read_run_id() and cursor or '0'
end

local function keep_cursor(cursor)
  return cursor == '0' and '0' or cursor .. ' ' .. read_run_id()
end

-- What every script begins with.
local INDEX_SECONDS = 60 * 86400

-- Have the watchdog look at a chord at `when`.
local function be_due(due, group_id, when)
    redis.call('ZADD', due, when, group_id)
    redis.call('EXPIRE', due, INDEX_SECONDS)
end


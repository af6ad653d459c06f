-- Look at a live chord again at `due`; until then its keys live on. Of one that has no record any
-- more, and was not closed, tell whether its parts or its size are there: it waits for a part,
-- which brings its body along.
local again = ARGV[2]

local lifetime = redis.call('HGET', record, 'lifetime')
if not lifetime then
    local is_live = redis.call('ZSCORE', due, group_id)
    if is_live and redis.call('EXISTS', j, s) > 0 then
        be_due(again)
        return 'kept'
    end
    redis.call('ZREM', due, group_id)
    return is_live and 'gone' or ''
end
lifetime = number(lifetime) or LONGEST_SECONDS
be_due(again)
for _, key in ipairs({record, j, t, s, d, group}) do
    redis.call('EXPIRE', key, lifetime)
end
return ''

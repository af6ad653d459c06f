-- Note what workers without the patches have counted, and how many of all those members failed: of
-- a part the beginning names its state, which is one of those in ARGV[5] then.
local now, seen, is_ordered, states = ARGV[2], ARGV[3], ARGV[4] == '1', cjson.decode(ARGV[5])

if redis.call('EXISTS', record) == 0 then
    return 0
end

local function has_failed(part)
    local beginning = string.sub(part, 1, BEGINNING)
    for _, state in ipairs(states) do
        local found = string.find(beginning, state, 1, true)
        if found then
            -- The first state that is named is that of the member.
            local success = string.find(beginning, 'SUCCESS', 1, true)
            return not success or found < success
        end
    end
    return false
end

local failed = 0
-- Of a key of another type there is nothing to read.
for _, part in ipairs(redis.pcall(is_ordered and 'ZRANGE' or 'LRANGE', j, 0, -1)) do
    failed = failed + (has_failed(part) and 1 or 0)
end
redis.call('HSET', record, 'progressed', now, 'seen', seen, 'failed', failed)
return failed

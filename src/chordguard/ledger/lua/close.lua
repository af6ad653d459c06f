-- Forget a chord that has ended. Parts that come twice, and late, find that it is done, for
-- `done_seconds`; for `is_forgotten` the structure of its results goes, too. Of a chord that
-- `has_failed` the parts can be read for as long, as with Celery. How it ended, if that is told, is
-- kept for `kept_seconds`: `failed` is empty where those count that were counted.
local done_seconds, is_marked, is_forgotten = tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
local has_failed = ARGV[5] == '1'
local now, outcome, failed, kept_seconds = ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local created, size, total, seen, counted, body_id =
    unpack(redis.call('HMGET', record, 'created', 'size', 'total', 'seen', 'failed', 'body_id'))
if outcome and created then
    size = number(size) or number(total)
    size = size and size + (number(redis.call('GET', t)) or 0)
    if failed == '' then
        failed = number(counted) or 0
    end
    local told = {outcome, size or false, size or number(seen) or 0, failed, created, now}
    redis.call('SET', kept, cjson.encode(told), 'EX', kept_seconds)
end
if body_id then
    local pointer = KEYS[1] .. body_id .. POINTER
    if outcome then
        redis.call('EXPIRE', pointer, kept_seconds)
    else
        redis.call('DEL', pointer)
    end
end

if done_seconds > 0 and (redis.call('EXISTS', record) == 1 or is_marked) then
    redis.call('SET', c, 'done', 'EX', done_seconds)
elseif done_seconds == 0 or redis.call('GET', c) ~= 'done' then
    redis.call('DEL', c)
end
redis.call('ZREM', due, group_id)
if is_forgotten then
    redis.call('DEL', group)
end
if has_failed and redis.call('GET', c) == 'done' then
    redis.call('EXPIRE', j, done_seconds)
    return redis.call('DEL', t, s, d, record)
end
return redis.call('DEL', j, t, s, d, record)

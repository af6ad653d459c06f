-- Count a part of a chord once; claim the chord for whom its last part came from.
--
-- The keys j (parts), t (members added), s (size), d (parts seen) and c (claim, or "done") are
-- Celery's own, and keep the meaning that they have in Celery 5.7: workers with and without
-- the patches, of any version, count one chord together.
local j, t, s, d, c, group, record, due = unpack(KEYS)
local group_id, task_id, part, index, is_recounted = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local is_ordered, expires, group_expires = ARGV[6] == '1', ARGV[7], ARGV[8]
local now, token, claim_seconds = ARGV[9], ARGV[10], tonumber(ARGV[11])

if redis.call('GET', c) == 'done' then
    return {'done'}
end

local is_new = redis.call('SISMEMBER', d, task_id) == 0
if is_new and is_recounted == '1' then
    -- Made from a stored result, it stands for any part of that task.
    for _, seen in ipairs(redis.call('SMEMBERS', d)) do
        is_new = is_new and string.sub(seen, 1, #task_id + 1) ~= task_id .. ':'
    end
    if is_new then
        redis.call('SADD', d, task_id)
    end
end
if is_new and redis.call('SADD', d, task_id .. ':' .. index) == 0 then
    is_new = false
end
if is_new then
    if is_ordered then
        redis.call('ZADD', j, index, part)
    else
        redis.call('RPUSH', j, part)
    end
end
local returned = redis.call(is_ordered and 'ZCARD' or 'LLEN', j)

local lifetime, seen, known_size = unpack(redis.call('HMGET', record, 'lifetime', 'seen', 'size'))
if lifetime then
    if is_new then
        seen = math.max(returned, tonumber(seen or 0))
        redis.call('HSET', record, 'progressed', now, 'seen', seen)
    end
    expires, group_expires = lifetime, lifetime
    redis.call('EXPIRE', record, lifetime)
end
for _, key in ipairs({j, t, s, d}) do
    redis.call('EXPIRE', key, expires)
end
if tonumber(group_expires) > 0 then
    redis.call('EXPIRE', group, group_expires)
end

local size = redis.call('GET', s) or known_size
if not size then
    return {lifetime and 'live' or 'sizeless'}
end
size = tonumber(size) + tonumber(redis.call('GET', t) or 0)
if returned < size then
    return {'live'}
end
if not redis.call('SET', c, token, 'NX', 'EX', claim_seconds) and redis.call('GET', c) ~= token then
    return {'live'}
end
if not lifetime then
    return {'claimed'}
end
local claimed_until = string.format('%.3f', tonumber(now) + claim_seconds)
redis.call('HSET', record, 'claimed_until', claimed_until)
be_due(due, group_id, claimed_until)
return {'claimed', redis.call('HGET', record, 'header')}

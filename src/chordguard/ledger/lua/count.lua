-- Count a part of a chord once; claim the chord for whom its last part came from. Workers with and
-- without the patches, of any version, count one chord together.
local group_id, task_id, part, index, is_recounted = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local is_ordered, expires, group_expires = ARGV[6] == '1', ARGV[7], ARGV[8]
local now, token, claim_seconds = ARGV[9], ARGV[10], tonumber(ARGV[11])
-- From 5.7 on Celery looks into d, in which each part takes some 80 bytes.
local keeps_seen = ARGV[12] == '1'

local mark, size, added = unpack(redis.call('MGET', c, s, t))
if mark == 'done' then
    return {'done'}
end

-- Parts without a place of their own would all have to be looked through.
local has_place = is_ordered and index ~= '+inf'
local is_new, is_seen = redis.call('SISMEMBER', d, task_id) == 0, false
if is_new and is_recounted == '1' then
    -- Made from a stored result, it stands for any part of that task.
    is_new = not is_among(redis.call(is_ordered and 'ZRANGE' or 'LRANGE', j, 0, -1), task_id)
    if is_new then
        is_seen = redis.call('SADD', d, task_id) == 1
    end
elseif is_new and has_place then
    is_new = not is_among(redis.call('ZRANGEBYSCORE', j, index, index), task_id)
end
if is_new and (keeps_seen or not has_place) then
    is_seen = redis.call('SADD', d, task_id .. ':' .. index) == 1
    is_new = is_seen
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
end
-- The keys of a chord with a record were made with their lifetime: it is renewed when a tenth of
-- it is over. Those of others are given it with each part, as by Celery.
local function is_fresh(key)
    return redis.call('TTL', key) > 0.9 * expires
end
if not (lifetime and is_fresh(record) and is_fresh(j) and (not is_seen or is_fresh(d))) then
    for _, key in ipairs({record, j, t, s, d}) do
        redis.call('EXPIRE', key, expires)
    end
    if tonumber(group_expires) > 0 then
        redis.call('EXPIRE', group, group_expires)
    end
end

size = size or known_size
if not size then
    return {lifetime and 'live' or 'sizeless'}
end
if returned < tonumber(size) + tonumber(added or 0) then
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
be_due(group_id, claimed_until)
return {'claimed', redis.call('HGET', record, 'header')}

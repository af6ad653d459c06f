-- Count a part of a chord once; claim the chord for whom its last part came from, and tell him its
-- header and, unless they are many, its parts. Workers with and without the patches, of any
-- version, count one chord together.
local MANY = 1000

local task_id, part, index, is_recounted = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local is_ordered, expires, group_expires = ARGV[6] == '1', ARGV[7], ARGV[8]
local now, token, claim_seconds = tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11])
-- From 5.7 on Celery looks into d, in which each part takes some 80 bytes.
local keeps_seen = ARGV[12] == '1'
local has_failed = ARGV[13] == '1'
-- In a store of its own a chord that has no record was not started here.
local is_own = ARGV[14] == '1'

local mark, size, added = unpack(redis.call('MGET', c, s, t))
if mark == 'done' then
    return {'done'}
end
local lifetime, seen, known_size, renewed, failed =
    unpack(redis.call('HMGET', record, 'lifetime', 'seen', 'size', 'renewed', 'failed'))
if is_own and not lifetime and not redis.call('ZSCORE', due, group_id) then
    return {'unknown'}
end
if lifetime then
    lifetime = number(lifetime) or LONGEST_SECONDS
    expires, group_expires = lifetime, lifetime
end
size, added, renewed = number(size) or number(known_size), number(added) or 0, number(renewed)

local function see(member)
    local is_new = redis.call('SADD', d, member) == 1
    redis.call('EXPIRE', d, expires)
    return is_new
end

-- Parts without a place of their own would all have to be looked through.
local has_place = is_ordered and index ~= '+inf'
local is_new = redis.call('SISMEMBER', d, task_id) == 0
if is_recounted == '1' then
    -- Made from a stored result, it stands for any part of that task, whatever was seen of it.
    is_new = not is_among(redis.call(is_ordered and 'ZRANGE' or 'LRANGE', j, 0, -1), task_id)
    see(task_id)
elseif is_new and has_place then
    is_new = not is_among(redis.call('ZRANGEBYSCORE', j, index, index), task_id)
end
if is_new and is_recounted ~= '1' and (keeps_seen or not has_place) then
    is_new = see(task_id .. ':' .. index)
end
if is_new then
    if is_ordered then
        redis.call('ZADD', j, index, part)
    else
        redis.call('RPUSH', j, part)
    end
end
local returned = redis.call(is_ordered and 'ZCARD' or 'LLEN', j)

-- The keys of a chord that has a record live for its lifetime, and anew when a tenth of it is over;
-- those of others with each part, as by Celery.
local is_aging = not renewed or now > renewed + 0.1 * lifetime
if lifetime and is_new then
    seen = math.max(returned, number(seen) or 0)
    redis.call('HSET', record, 'progressed', ARGV[9], 'seen', seen)
    if has_failed then
        redis.call('HSET', record, 'failed', (number(failed) or 0) + 1)
    end
end
if is_aging then
    if lifetime then
        redis.call('HSET', record, 'renewed', ARGV[9])
    end
    for _, key in ipairs({record, j, t, s, d}) do
        redis.call('EXPIRE', key, expires)
    end
    if tonumber(group_expires) > 0 then
        redis.call('EXPIRE', group, group_expires)
    end
end

if not size or returned < size + added then
    -- Only a chord that had a record is in the index of what is due.
    return {lifetime and 'live' or (redis.call('ZSCORE', due, group_id) and 'lost' or 'sizeless')}
end
if not redis.call('SET', c, token, 'NX', 'EX', claim_seconds) and redis.call('GET', c) ~= token then
    return {'live'}
end
local header = false
if lifetime then
    local claimed_until = string.format('%.3f', now + claim_seconds)
    redis.call('HSET', record, 'claimed_until', claimed_until)
    be_due(claimed_until)
    header = redis.call('HGET', record, 'header')
end
if returned > MANY then
    return {'claimed', header}
end
return {'claimed', header, redis.call(is_ordered and 'ZRANGE' or 'LRANGE', j, 0, -1)}

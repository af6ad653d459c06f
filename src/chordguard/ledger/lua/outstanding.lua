-- Look for members of chords that were not counted: the ids of those without a result as JSON,
-- behind them, if there are any, the ids and results of the others. The keys of results begin with
-- ARGV[3]; a chord comes as its id, its number of members, and theirs in header order.
local is_ordered, results = ARGV[2] == '1', ARGV[3]

local function outstanding_of(j, size, next_id)
    local is_counted, rest, in_place = {}, {}, 0
    for place = 0, size - 1 do
        local task_id = next_id()
        local parts = is_ordered and redis.call('ZRANGEBYSCORE', j, place, place) or {}
        if is_among(parts, task_id) then
            is_counted[task_id] = true
            in_place = in_place + 1
        else
            table.insert(rest, task_id)
        end
    end
    -- What was counted under another place, or without one, is looked for among all parts.
    local beginnings = {}
    if not is_ordered then
        beginnings = redis.call('LRANGE', j, 0, -1)
    elseif redis.call('ZCARD', j) > in_place then
        beginnings = redis.call('ZRANGE', j, 0, -1)
    end
    for index, part in ipairs(beginnings) do
        beginnings[index] = string.sub(part, 1, BEGINNING)
    end
    local all = table.concat(beginnings, '\n')

    local missing, uncounted = {}, {}
    for _, task_id in ipairs(rest) do
        if not is_counted[task_id] and not string.find(all, task_id, 1, true) then
            local stored = redis.pcall('GET', results .. task_id)
            if type(stored) == 'string' then
                table.insert(uncounted, task_id)
                table.insert(uncounted, stored)
            else
                table.insert(missing, task_id)
            end
        end
    end
    if #uncounted == 0 then
        return cjson.encode(missing)
    end
    table.insert(uncounted, 1, cjson.encode(missing))
    return uncounted
end

local answers, at = {}, 4
local function take()
    at = at + 1
    return ARGV[at - 1]
end
while at <= #ARGV do
    local parts = group .. take() .. '.j'
    local size = tonumber(take())
    table.insert(answers, outstanding_of(parts, size, take))
end
return answers

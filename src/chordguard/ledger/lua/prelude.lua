-- What every script begins with.
local INDEX_SECONDS = 60 * 86400

-- Have the watchdog look at a chord at `when`.
local function be_due(due, group_id, when)
    redis.call('ZADD', due, when, group_id)
    redis.call('EXPIRE', due, INDEX_SECONDS)
end

-- Of a part the first so many characters name its task and the state that it ended in.
local BEGINNING = 256

-- Tell whether one of the parts is that of a task.
local function is_among(parts, task_id)
    for _, part in ipairs(parts) do
        if string.find(string.sub(part, 1, BEGINNING), task_id, 1, true) then
            return true
        end
    end
    return false
end


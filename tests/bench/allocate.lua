-- wrk's script: POST /payout/create with a key drawn from a file, a random e-mail and amount; JSON at the end.
-- Arguments: key file, seed, how many e-mails, their stride, amount_max, requests a second of all connections (0: as
-- fast as they can), connections.
-- There is no response(): the endpoint answers 201 or 400 and above, which wrk counts, and it would cost.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  -- Each thread has its own Lua, which would draw the same e-mails as the others.
  math.randomseed(tonumber(args[2]) * 1000 + number)
  emails, stride, amount_max = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  heads = {}
  for key in io.lines(args[1]) do
    heads[#heads + 1] = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. key
      .. "\r\nContent-Type: application/json\r\nContent-Length: "
  end
  local per_second = tonumber(args[6])
  if per_second > 0 then
    local between_ms = 1000 * tonumber(args[7]) / per_second
    function delay() return math.random(0, 2 * between_ms) end
  end
end

function request()
  local body = '{"email": "user' .. stride * math.random(0, emails - 1) .. '@example.com", "amount": '
    .. math.random(1, amount_max) .. "}"
  return heads[math.random(1, #heads)] .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "refused": %d, "socket_errors": %d, "duration_s": %.6f, '
    .. '"p50_us": %d, "p90_us": %d, "p99_us": %d, "max_us": %d}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end

-- For Quarto and for the built-in renderer alike. pandoc gives a pipe table with a long line the full width and divides it by the
-- dashes of its rule; a table here is as wide as what it holds.

function Table(tbl)
  tbl.colspecs = tbl.colspecs:map(function(spec) return {spec[1], nil} end)
  return tbl
end

-- typst reads dots and hyphens as shorthands (an ellipsis, a minus, a soft hyphen), and pandoc does not escape them all.

function Str(str)
  if FORMAT:match("typst") and (str.text:find("%.%.%.") or str.text:find("%-[%d?%-]")) then
    return pandoc.RawInline("typst", '#"' .. str.text:gsub('[\\"]', "\\%0") .. '";')
  end
end

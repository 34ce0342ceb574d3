import java.util.ArrayList;
import java.util.Collection;
import java.util.List;

/** A JSON object with its fields in the order in which they are added: in ASCII, without spaces. */
final class Json {
  private final List<String> fields = new ArrayList<>();

  /** Adds a field: null, a number, a list, another object, or anything else as text. */
  void add(String name, Object value) {
    fields.add(quoted(name) + ":" + json(value));
  }

  @Override
  public String toString() {
    return "{" + String.join(",", fields) + "}";
  }

  private static String json(Object value) {
    if (value == null || value instanceof Long || value instanceof Json) {
      return String.valueOf(value);
    }
    if (value instanceof Collection<?> values) {
      List<String> found = new ArrayList<>();
      for (Object one : values) {
        found.add(json(one));
      }
      return "[" + String.join(",", found) + "]";
    }
    return quoted(value.toString());
  }

  /** Returns a JSON string in ASCII: the same bytes in every language, and nothing that a terminal would obey. */
  private static String quoted(String value) {
    StringBuilder text = new StringBuilder("\"");
    for (char unit : value.toCharArray()) {
      switch (unit) {
        case '"', '\\' -> text.append('\\').append(unit);
        case '\n' -> text.append("\\n");
        case '\r' -> text.append("\\r");
        case '\t' -> text.append("\\t");
        case '\b' -> text.append("\\b");
        case '\f' -> text.append("\\f");
        default -> text.append(unit >= ' ' && unit <= '~' ? "" + unit : String.format("\\u%04x", (int) unit));
      }
    }
    return text.append('"').toString();
  }
}

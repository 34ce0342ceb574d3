import java.io.BufferedOutputStream;
import java.io.FileOutputStream;
import java.io.FileDescriptor;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.Set;

/**
 * Reads the ledger topic of a Flaghoist environment and checks it: signatures, chain, roots, people.
 *
 * <p>One line of JSON for each entry goes to stdout, one for the count of records to stderr. docs/topic.md explains both,
 * and what is left to `flaghoist audit verify`.
 */
final class Reader {
  // Exit codes as the flaghoist command has them.
  private static final int USAGE = 2;
  private static final int REFUSED = 10;
  private static final int UNAVAILABLE = 12;

  private static final Set<String> OPTIONS = Set.of("--brokers", "--topic", "--root", "--avsc");

  /** The topic could be read, and does not hold a whole chain from the trusted root to its end. */
  private static final class BrokenChain extends Exception {
    BrokenChain(String text) {
      super("the chain breaks: " + text);
    }
  }

  /** The command line cannot work. */
  private static final class Usage extends Exception {
    Usage(String text) {
      super(text);
    }
  }

  private Reader() {}

  public static void main(String[] arguments) {
    int code = 0;
    try {
      run(arguments);
    } catch (Usage error) {
      code = failed(error, USAGE);
    } catch (BrokenChain | NotUnderstood error) {
      code = failed(error, REFUSED);
    } catch (Exception error) {
      code = failed(error, UNAVAILABLE);
    }
    System.exit(code);
  }

  private static int failed(Exception error, int code) {
    System.err.println("reader: " + error.getMessage());
    return code;
  }

  private static void run(String[] arguments) throws Exception {
    Map<String, String> given = options(arguments);
    Codec codec;
    try {
      codec = new Codec(Path.of(given.getOrDefault("--avsc", "proto/flaghoist/avro")));
    } catch (IOException | RuntimeException error) {
      throw new Usage("--avsc: " + error);
    }
    Hash trusted = trustedRoot(codec, given.get("--root"));
    try (Topic topic = new Topic(given.get("--brokers"), given.get("--topic"))) {
      Origins.Beginning beginning = beginning(topic, codec, trusted);
      print(topic, new Chain(codec, beginning), given.containsKey("--follow"));
    }
  }

  private static Map<String, String> options(String[] arguments) throws Usage {
    Map<String, String> given = new HashMap<>();
    for (int at = 0; at < arguments.length; at++) {
      if (arguments[at].equals("--follow")) {
        given.put("--follow", "");
      } else if (OPTIONS.contains(arguments[at]) && at + 1 < arguments.length) {
        given.put(arguments[at], arguments[++at]);
      } else {
        throw new Usage("unknown option, or one without its value: " + arguments[at]);
      }
    }
    if (!given.keySet().containsAll(Set.of("--brokers", "--topic", "--root"))) {
      throw new Usage("want --brokers HOST:PORT, --topic TOPIC, --root FILE|sha256:HEX [--follow] [--avsc DIRECTORY]");
    }
    return given;
  }

  /** Returns the digest of the root in a file, or the digest that was given. */
  private static Hash trustedRoot(Codec codec, String given) throws Usage {
    try {
      if (given.startsWith("sha256:")) {
        byte[] digest = HexFormat.of().parseHex(given.substring("sha256:".length()));
        if (digest.length != Hash.BYTES) {
          throw new Usage("--root: want sha256: and 64 hex digits");
        }
        return new Hash(digest);
      }
      return Root.verified(codec, codec.envelope(Files.readAllBytes(Path.of(given)))).sha256;
    } catch (IOException | IllegalArgumentException | Refusal error) {
      throw new Usage("--root: " + given + ": " + error.getMessage());
    }
  }

  /** Reads the topic until it is known which root the ledger starts with. */
  private static Origins.Beginning beginning(Topic topic, Codec codec, Hash trusted) throws Exception {
    Origins origins = new Origins(codec, trusted);
    topic.read(
        false,
        new Topic.Sink() {
          @Override
          public boolean take(long position, byte[] value) {
            origins.take(value);
            return origins.found() == null;
          }

          @Override
          public void atEnd() throws BrokenChain {
            throw new BrokenChain("root " + origins.wanted() + ": the topic does not state it");
          }
        });
    return origins.found();
  }

  /** Writes a line for each entry, and at the end how many records there were of each kind. */
  private static void print(Topic topic, Chain chain, boolean follow) throws Exception {
    PrintStream out =
        new PrintStream(
            new BufferedOutputStream(new FileOutputStream(FileDescriptor.out)), false, StandardCharsets.US_ASCII);
    try {
      topic.read(
          follow,
          new Topic.Sink() {
            @Override
            public boolean take(long position, byte[] value) throws NotUnderstood {
              Account account = chain.take(position, value);
              if (account != null) {
                out.print(account.line() + "\n");
              }
              return true;
            }

            @Override
            public void atEnd() throws Exception {
              if (out.checkError()) { // flushes as well
                throw new IOException("stdout: cannot be written");
              }
              if (chain.broken() != null) {
                throw new BrokenChain(chain.broken());
              }
            }
          });
    } finally {
      out.flush();
      System.err.println(chain.summary());
    }
  }
}

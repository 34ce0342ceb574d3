import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** The one partition of a ledger. */
final class Topic implements AutoCloseable {
  // Brokers that say nothing for so long are taken to be away.
  private static final Duration SILENCE = Duration.ofSeconds(30);
  private static final Duration POLL = Duration.ofMillis(500);

  /** Takes records one by one, and is told when the topic's end has been reached. */
  interface Sink {
    /** Returns false to stop. */
    boolean take(long position, byte[] value) throws Exception;

    void atEnd() throws Exception;
  }

  private final KafkaConsumer<byte[], byte[]> consumer;
  private final TopicPartition partition;

  /**
   * Finds the topic, and refuses one that cannot be a ledger.
   *
   * <p>Uncommitted records are read as well: whoever can write to the topic could else hold readers up with a
   * transaction that is never ended.
   */
  Topic(String brokers, String name) {
    Properties settings = new Properties();
    settings.put("bootstrap.servers", brokers);
    settings.put("isolation.level", "read_uncommitted");
    settings.put("enable.auto.commit", "false");
    settings.put("auto.offset.reset", "none");
    settings.put("allow.auto.create.topics", "false");
    settings.put("default.api.timeout.ms", String.valueOf(SILENCE.toMillis()));
    consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    partition = new TopicPartition(name, 0);
    try {
      List<PartitionInfo> partitions = consumer.partitionsFor(name);
      if (partitions == null || partitions.size() != 1) {
        int count = partitions == null ? 0 : partitions.size();
        throw new KafkaException("topic " + name + ": want 1 partition, as a ledger has, got " + count);
      }
      consumer.assign(List.of(partition));
    } catch (RuntimeException error) {
      consumer.close();
      throw error;
    }
  }

  /** Hands every record on, from the first one that is kept to the end as it is now; with `follow`, also what comes. */
  void read(boolean follow, Sink sink) throws Exception {
    Map<TopicPartition, Long> ends = consumer.endOffsets(List.of(partition));
    // Not what a reset policy finds: a topic that was made anew would then be read on as if it were the same.
    consumer.seek(partition, consumer.beginningOffsets(List.of(partition)).get(partition));
    boolean reached = false;
    long heardAt = System.nanoTime();
    while (true) {
      if (!reached && consumer.position(partition) >= ends.get(partition)) {
        reached = true;
        sink.atEnd();
        if (!follow) {
          return;
        }
      }
      long before = consumer.position(partition);
      for (ConsumerRecord<byte[], byte[]> record : consumer.poll(POLL)) {
        if (!sink.take(record.offset(), record.value())) {
          return;
        }
      }
      if (consumer.position(partition) > before) {
        heardAt = System.nanoTime();
        if (reached) {
          sink.atEnd();
        }
      } else if (!reached && System.nanoTime() - heardAt > SILENCE.toNanos()) {
        throw new KafkaException("no record for " + SILENCE.toSeconds() + " s, and the topic's end is not reached");
      }
    }
  }

  @Override
  public void close() {
    consumer.close();
  }
}
